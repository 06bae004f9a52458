"""Predictions on images far larger than those that a model was trained on, tile by tile."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmcv.ops import batched_nms
from mmengine.structures import InstanceData
from pycocotools import mask as mask_utils
from torch import Tensor

# Share of a tile that its neighbour sees too.
_OVERLAP = 0.25
# An object that a tile cuts ends within this share of the tile from the cut.
_CUT = 1 / 64
_NMS = dict(type="nms", iou_threshold=0.5)

Window = tuple[slice, slice]
Track = Callable[[Sequence[Any]], Iterable[Any]]


class Tile(NamedTuple):
    """The window of an image that the model sees, and the core of it that it labels."""

    window: Window
    core: Window


def make_tiles(size: tuple[int, int], tile_size: int) -> list[Tile]:
    """Cover an image (H, W) with overlapping square tiles, whose cores don't overlap.

    A side of the image that is shorter than a tile is not cut.
    """
    rows, columns = (_cut_side(side, tile_size) for side in size)
    return [Tile(*zip(row, column, strict=True)) for row in rows for column in columns]


def _cut_side(side: int, tile_size: int) -> list[tuple[slice, slice]]:
    tile_size = min(side, tile_size)
    stride = tile_size - int(_OVERLAP * tile_size)
    count = 1 + math.ceil((side - tile_size) / stride)
    starts = np.linspace(0, side - tile_size, count).round().astype(int).tolist()
    stops = [start + tile_size for start in starts]
    middles = [(start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)]
    windows = map(slice, starts, stops)
    return list(zip(windows, map(slice, [0, *middles], [*middles, side]), strict=True))


def segment_by_tiles(
    segment: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    tile_size: int,
    num_classes: int,
    track: Track = iter,
) -> np.ndarray:
    """Put label maps of tiles together; each pixel's label is that of the tile it lies deepest in.

    No class scores are kept: those of 150 classes are 14 GiB for an image of 6000 x 4000.

    Args:
        segment: Gives the labels (H, W) of an image (H, W, 3).
        image: (H, W, 3).
        tile_size: Side of a tile, in pixels.
        num_classes: Number of different labels.
        track: Shows the progress.

    Returns:
        Labels (H, W), in the smallest type of integers that holds them.
    """
    labels = np.empty(image.shape[:2], np.min_scalar_type(num_classes - 1))
    for window, core in track(make_tiles(image.shape[:2], tile_size)):
        inside = tuple(
            slice(part.start - whole.start, part.stop - whole.start)
            for part, whole in zip(core, window, strict=True)
        )
        labels[core] = segment(image[window])[inside]
    return labels


def detect_by_tiles(
    detect: Callable[[np.ndarray], InstanceData],
    image: np.ndarray,
    tile_size: int,
    track: Track = iter,
) -> InstanceData:
    """Join what a detector finds in tiles of an image, of the image at half its size, and so on.

    An object that fits into the overlap of two tiles is whole in one of them. Larger ones are
    found where the image is smaller. An image of no more than two tiles a side is taken whole.
    What is found twice goes by non-maximum suppression.

    Args:
        detect: Gives the ``bboxes``, ``scores``, ``labels`` and perhaps ``masks`` (N, h, w) in an
            image (h, w, 3), on the CPU.
        image: (H, W, 3).
        tile_size: Side of a tile, in pixels.
        track: Shows the progress.

    Returns:
        The instances; their masks as COCO's run lengths, of the size of the image.
    """
    levels = [image]
    while max(levels[-1].shape[:2]) > 2 * tile_size:
        levels.append(mmcv.imrescale(levels[-1], 0.5))
    views = []
    for level in levels:
        side = max(level.shape[:2]) if level is levels[-1] else tile_size
        views += [(level, tile.window) for tile in make_tiles(level.shape[:2], side)]

    found = []
    for level, window in track(views):
        instances = detect(level[window])
        kept = _is_whole(instances.bboxes, window, level.shape[:2])
        if level is not image:
            # Smaller ones are whole in the larger image's tiles, and seen better.
            sides = instances.bboxes[:, 2:] - instances.bboxes[:, :2]
            kept &= sides.amax(1) > _OVERLAP * tile_size / 4
        found.append(_place(instances[kept], window, level.shape[:2], image.shape[:2]))
    found = InstanceData.cat(found)
    if len(views) == 1 or not len(found):
        return found
    _, kept = batched_nms(found.bboxes, found.scores, found.labels, _NMS)
    return found[kept]


def _is_whole(bboxes: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Which boxes (N, 4) in a window don't end at one of its sides that cuts the image."""
    whole = torch.ones(len(bboxes), dtype=torch.bool)
    for axis, (part, side) in enumerate(zip(window, size, strict=True)):
        length = part.stop - part.start
        if part.start > 0:
            whole &= bboxes[:, 1 - axis] > _CUT * length
        if part.stop < side:
            whole &= bboxes[:, 3 - axis] < (1 - _CUT) * length
    return whole


def _place(
    instances: InstanceData, window: Window, level: tuple[int, int], size: tuple[int, int]
) -> InstanceData:
    """Move instances from a window of an image's level to the image; each pair is (H, W)."""
    scale = size[0] / level[0], size[1] / level[1]
    top, left, bottom, right = (
        round(getattr(part, end) * factor)
        for end in ("start", "stop")
        for part, factor in zip(window, scale, strict=True)
    )
    bboxes = instances.bboxes
    placed = InstanceData(
        bboxes=bboxes * bboxes.new_tensor(scale[::-1] * 2) + bboxes.new_tensor([left, top] * 2),
        scores=instances.scores,
        labels=instances.labels,
    )
    if "masks" in instances:
        masks = (mask.numpy().astype(np.uint8) for mask in instances.masks)
        if level != size:
            shape = (right - left, bottom - top)
            masks = (cv2.resize(mask, shape, interpolation=cv2.INTER_NEAREST) for mask in masks)
        placed.masks = [encode_mask(mask, (top, left), size) for mask in masks]
    return placed


def encode_mask(mask: np.ndarray, offset: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """Encode a part of a mask that is empty elsewhere, in time and memory of that part alone.

    Args:
        mask: (h, w), of 0 and 1.
        offset: Row and column of the whole mask where the part begins.
        size: Height and width of the whole mask.

    Returns:
        COCO's run lengths, which go down column after column.
    """
    flips = np.diff(np.pad(mask.astype(np.int8).T, ((0, 0), (1, 1))))
    columns, rows = np.nonzero(flips)
    pixels = (columns + offset[1]) * size[0] + rows + offset[0]
    counts = np.diff(pixels, prepend=0, append=size[0] * size[1]).tolist()
    return mask_utils.frPyObjects({"size": list(size), "counts": counts}, *size)
