"""Masks of COCO's annotations: polygons and run lengths that can be drawn into their images.

They are read before pycocotools reads them, which doesn't look: NaN, coordinates of 1e8 and run
lengths beyond the image end the process with a segmentation fault, and run lengths that stop short
leave what was in memory.
"""

from array import array
from collections.abc import Sequence
from enum import IntEnum
from itertools import chain
from typing import Any

import numpy as np

# Polygons are drawn point by point: a side of 1e8 pixels takes gigabytes.
_FARTHEST = 1e6
# Items at a time, which bounds memory.
_CHUNK = 20_000


class Mask(IntEnum):
    """What becomes of an object's mask."""

    SOUND = 0
    ABSENT = 1
    TOO_SHORT = 2  # No polygon has an even number of 6 numbers or more: MMDetection ignores it.
    EMPTY = 3  # Outside of the image, or without a whole pixel.
    BROKEN = 4  # Of another type or size than MMDetection can read, or absurd.
    RUN_LENGTHS = 5  # Sound, but MMDetection takes it only with poly2mask=True.


def check_masks(segmentations: Sequence[Any], sizes: np.ndarray) -> np.ndarray:
    """Say of every mask what a training makes of it.

    Args:
        segmentations: COCO's ``segmentation`` of N objects: polygons as lists or as arrays of
            float64, run lengths, or anything.
        sizes: (N, 2) widths and heights of their images.

    Returns:
        (N,) members of :class:`Mask`, as int8.
    """
    found = np.full(len(segmentations), Mask.BROKEN, np.int8)
    kinds = np.array([_kind(segmentation) for segmentation in segmentations], dtype="U1")
    found[kinds == "-"] = Mask.ABSENT
    for kind, check in (("p", _check_polygons), ("r", _check_run_lengths)):
        chosen = np.flatnonzero(kinds == kind)
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            found[part] = check([segmentations[index] for index in part], sizes[part])
    return found


def _kind(segmentation: Any) -> str:
    """``'-'`` for none, ``'p'`` for polygons, ``'r'`` for run lengths, ``'?'`` for others."""
    if not segmentation:
        return "-"
    if isinstance(segmentation, list):
        return "p" if all(isinstance(part, list | array) for part in segmentation) else "?"
    if isinstance(segmentation, dict):
        return "r" if isinstance(segmentation.get("counts"), list | str) else "?"
    return "?"


def _check_polygons(segmentations: list[list[Any]], sizes: np.ndarray) -> np.ndarray:
    parts = list(chain.from_iterable(segmentations))
    owners = np.repeat(np.arange(len(segmentations)), [len(parts) for parts in segmentations])
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    usable = (lengths % 2 == 0) & (lengths >= 6)
    found = np.full(len(segmentations), Mask.TOO_SHORT, np.int8)
    if usable.any():
        owners, lengths = owners[usable], lengths[usable]
        flat, broken = _flatten([parts[index] for index in np.flatnonzero(usable)], lengths)
        starts = np.concatenate([[0], np.cumsum(lengths // 2)[:-1]])
        visible = np.ones(len(owners), bool)
        for axis in range(2):
            low = np.minimum.reduceat(flat[axis::2], starts)  # NaN where one of them is NaN.
            high = np.maximum.reduceat(flat[axis::2], starts)
            broken |= ~((low >= -_FARTHEST) & (high <= _FARTHEST))
            visible &= (low < sizes[owners, axis]) & (high > 0) & (high - low >= 1)
        found[owners] = Mask.EMPTY
        found[owners[visible]] = Mask.SOUND
        found[owners[broken]] = Mask.BROKEN
    return found


def _flatten(polygons: list[Any], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of all polygons in a row, and which polygons hold other things than numbers."""
    broken = np.array([not isinstance(polygon, array) for polygon in polygons], bool)
    for index in np.flatnonzero(broken):
        try:
            polygons[index] = array("d", polygons[index])
            broken[index] = False
        except (TypeError, OverflowError):
            polygons[index] = array("d", [0.0]) * int(lengths[index])
    return np.frombuffer(b"".join(polygons)), broken


def _check_run_lengths(segmentations: list[dict[str, Any]], sizes: np.ndarray) -> np.ndarray:
    found = np.full(len(segmentations), Mask.BROKEN, np.int8)
    for index, (segmentation, (width, height)) in enumerate(
        zip(segmentations, sizes.tolist(), strict=True)
    ):
        counts = segmentation["counts"]
        add_up = sum_compressed_counts if isinstance(counts, str) else _sum_counts
        if segmentation.get("size") == [height, width] and add_up(counts) == width * height:
            found[index] = Mask.RUN_LENGTHS
    return found


def _sum_counts(counts: list[Any]) -> int:
    is_sound = set(map(type, counts)) <= {int} and min(counts, default=0) >= 0
    return sum(counts) if is_sound else -1


def sum_compressed_counts(text: str) -> int:
    """Add up the run lengths of COCO's compressed form, which make the mask's area and the rest.

    Returns:
        -1 where the text is no such form or holds a negative run.
    """
    coded = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    digits = coded.astype(np.int64) - 48
    # Six bits a character: five of the number, from the lowest, and whether more follow.
    ends = np.flatnonzero(digits & 32 == 0) + 1
    lengths = np.diff(ends, prepend=0)
    is_coded = digits.size and ends.size and ends[-1] == len(digits) and lengths.max() <= 7
    if not is_coded or digits.min() < 0 or digits.max() > 63:
        return -1
    starts = ends - lengths
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((digits & 31) << (5 * place), starts)
    counts -= (digits[ends - 1] >> 4 & 1) << (5 * lengths)
    # From the fourth on, a run is told as the difference to the run before the last.
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    return int(counts.sum()) if counts.min() >= 0 else -1
