"""Predictions on images far larger than those that a model was trained on, tile by tile."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmcv.ops import batched_nms
from mmengine.structures import InstanceData
from torch import Tensor

# Share of a tile that its neighbour sees too.
_OVERLAP = 0.25
# A cut object's box ends within so many pixels of the cut.
_CUT_SLACK = 4
_NMS = dict(type="nms", iou_threshold=0.5)


class Tile(NamedTuple):
    """A part of an image, in pixels, each pair being (row, column).

    Attributes:
        start: First pixel that the model sees.
        stop: The one after the last.
        core_start: First pixel that the tile speaks for: cores don't overlap.
        core_stop: The one after the last.
        size: Height and width of the image.
    """

    start: tuple[int, int]
    stop: tuple[int, int]
    core_start: tuple[int, int]
    core_stop: tuple[int, int]
    size: tuple[int, int]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The tile's part of an image."""
        return image[tuple(map(slice, self.start, self.stop))]

    def owns(self, boxes: Tensor) -> Tensor:
        """Which boxes, (N, 4) in the tile, have their centre in the core and are not cut."""
        owned = torch.ones(len(boxes), dtype=torch.bool)
        for axis in (0, 1):
            low, high = boxes[:, 1 - axis] + self.start[axis], boxes[:, 3 - axis] + self.start[axis]
            centre = (low + high) / 2
            owned &= (self.core_start[axis] <= centre) & (centre <= self.core_stop[axis])
            if self.start[axis] > 0:
                owned &= low > self.start[axis] + _CUT_SLACK
            if self.stop[axis] < self.size[axis]:
                owned &= high < self.stop[axis] - _CUT_SLACK
        return owned


Track = Callable[[Sequence[Tile]], Iterable[Tile]]


def make_tiles(size: tuple[int, int], tile_size: int) -> list[Tile]:
    """Cover an image with overlapping square tiles, or with one where it is small.

    Args:
        size: Height and width of the image.
        tile_size: Side of a tile, in pixels; a side of the image that is shorter is not cut.
    """
    rows, columns = (_cut_side(side, tile_size) for side in size)
    return [Tile(*zip(row, column, strict=True), size) for row in rows for column in columns]


def _cut_side(side: int, tile_size: int) -> list[tuple[int, int, int, int]]:
    tile_size = min(side, tile_size)
    overlap = int(_OVERLAP * tile_size)
    count = 1 + math.ceil((side - tile_size) / (tile_size - overlap))
    starts = np.linspace(0, side - tile_size, count).round().astype(int).tolist()
    stops = [start + tile_size for start in starts]
    middles = [(start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)]
    return list(zip(starts, stops, [0, *middles], [*middles, side], strict=True))


def segment_by_tiles(
    predict: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    tiles: Sequence[Tile],
    track: Track = iter,
) -> np.ndarray:
    """Put label maps of tiles together; each pixel's label is that of the tile it lies deepest in.

    Args:
        predict: Gives the labels (H, W) of an image (H, W, 3).
        image: (H, W, 3).
        tiles: See :func:`make_tiles`.
        track: Shows the progress.

    Returns:
        Labels (H, W), uint8.
    """
    labels = np.empty(image.shape[:2], np.uint8)
    for tile in track(tiles):
        core = tuple(map(slice, tile.core_start, tile.core_stop))
        inside = tuple(
            slice(first - start, stop - start)
            for first, stop, start in zip(tile.core_start, tile.core_stop, tile.start, strict=True)
        )
        labels[core] = predict(tile.cut(image))[inside]
    return labels


def detect_by_tiles(
    predict: Callable[[np.ndarray], InstanceData],
    image: np.ndarray,
    tiles: Sequence[Tile],
    track: Track = iter,
) -> InstanceData:
    """Join what a detector finds in tiles, and in the shrunk image, where large objects are whole.

    Args:
        predict: Gives the ``bboxes``, ``scores``, ``labels`` and perhaps ``masks`` (N, H, W) in an
            image (H, W, 3), on the CPU.
        image: (H, W, 3).
        tiles: See :func:`make_tiles`.
        track: Shows the progress.

    Returns:
        The instances, after non-maximum suppression where there are several tiles; their masks as
        :class:`PlacedMask`.
    """
    found = []
    for tile in track(tiles):
        instances = predict(tile.cut(image))
        instances = instances[tile.owns(instances.bboxes)]
        found.append(place_instances(instances, offset=tile.start))
    if len(tiles) == 1:
        return found[0]
    longest = 2 * max(
        stop - start for start, stop in zip(tiles[0].start, tiles[0].stop, strict=True)
    )
    shrunk = mmcv.imrescale(image, (longest, longest))
    found.append(place_instances(predict(shrunk), scale=shrunk.shape[0] / image.shape[0]))
    found = InstanceData.cat(found)
    _, kept = batched_nms(found.bboxes, found.scores, found.labels, _NMS)
    return found[kept]


class PlacedMask(NamedTuple):
    """A mask inside a large image.

    Attributes:
        top: Row of its first pixel.
        left: Column of its first pixel.
        mask: (h, w), of the rows and columns that the instance covers.
    """

    top: int
    left: int
    mask: np.ndarray

    def unfold(self, size: tuple[int, int]) -> np.ndarray:
        """The mask in an image of height and width ``size``."""
        whole = np.zeros(size, bool)
        height, width = self.mask.shape
        part = whole[self.top : self.top + height, self.left : self.left + width]
        part[...] = self.mask[: part.shape[0], : part.shape[1]]
        return whole


def place_instances(
    instances: InstanceData, offset: tuple[int, int] = (0, 0), scale: float = 1.0
) -> InstanceData:
    """Move instances from a part of an image, or from the shrunk image, to the whole one.

    Args:
        instances: Those of the part, with ``masks`` (N, H, W) if there are any.
        offset: Row and column where the part begins.
        scale: Side of the shrunk image over that of the whole one.
    """
    top, left = offset
    bboxes = instances.bboxes / scale + instances.bboxes.new_tensor([left, top, left, top])
    placed = InstanceData(bboxes=bboxes, scores=instances.scores, labels=instances.labels)
    if "masks" in instances:
        placed.masks = [_place_mask(mask.numpy(), offset, scale) for mask in instances.masks]
    return placed


def _place_mask(mask: np.ndarray, offset: tuple[int, int], scale: float) -> PlacedMask:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return PlacedMask(*offset, np.zeros((0, 0), bool))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if scale != 1:
        size = [max(1, round(side / scale)) for side in mask.shape[::-1]]
        mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    top, left = (
        round(first / scale) + start
        for first, start in zip((rows[0], columns[0]), offset, strict=True)
    )
    return PlacedMask(int(top), int(left), mask.copy())
