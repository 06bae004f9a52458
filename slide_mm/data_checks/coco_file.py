"""COCO's annotation files, read into columns."""

import gc
import json
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

ABSENT = object()


@dataclass
class CocoFile:
    """Images, annotations and categories of a file; annotations of a panoptic one are its segments.

    Polygons are arrays of float64 where they hold numbers alone.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    _columns: dict[str, list[Any]] = field(default_factory=dict, repr=False)

    def column(self, key: str) -> list[Any]:
        """The annotations' values of a key, ``ABSENT`` where one lacks it."""
        if key not in self._columns:
            self._columns[key] = column(self.annotations, key)
        return self._columns[key]


def read_coco(path: str) -> CocoFile:
    """Read an annotation file as pycocotools reads it.

    Args:
        path: File in COCO's format; a panoptic one has ``segments_info`` in its annotations.

    Raises:
        ValueError: If it isn't JSON, or not of COCO's form.
        OSError: If it cannot be read.
    """
    with _no_garbage_collection(), open(path) as file:
        content = json.load(file, object_hook=_pack_polygons)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not COCO's dict of lists")
    lists = []
    for key in ("images", "annotations", "categories"):
        # Files of test images have no annotations.
        items = content.get(key, [] if key == "annotations" else None)
        if not isinstance(items, list) or not set(map(type, items)) <= {dict}:
            raise ValueError(f"it has no list of {key} as COCO's format has it")
        lists.append(items)
    images, annotations, categories = lists
    if annotations and "segments_info" in annotations[0]:
        annotations = list(_iter_segments(annotations))
    return CocoFile(images, annotations, categories)


def _pack_polygons(item: dict[str, Any]) -> dict[str, Any]:
    """Make arrays of lists of numbers: masks take a quarter of the memory, and 400 MB are usual."""
    parts = item.get("segmentation")
    if isinstance(parts, list):
        with suppress(TypeError, OverflowError):  # Text among them, or no list: it will be told.
            item["segmentation"] = [array("d", part) for part in parts]
    return item


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects are walked through again and again otherwise."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _iter_segments(annotations: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for annotation in annotations:
        segments = annotation.get("segments_info")
        if not isinstance(segments, list) or not set(map(type, segments)) <= {dict}:
            raise ValueError("some of its annotations have no list of segments_info")
        for segment in segments:
            if "image_id" in annotation:
                segment["image_id"] = annotation["image_id"]
            yield segment


def column(items: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """The values of a key, ``ABSENT`` where an item lacks it."""
    return [item.get(key, ABSENT) for item in items]


def is_absent(values: Sequence[Any]) -> np.ndarray:
    """(N,) whether a value is ``ABSENT``."""
    if type(ABSENT) not in set(map(type, values)):
        return np.zeros(len(values), bool)
    return np.array([value is ABSENT for value in values], bool)


def as_numbers(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Values as float64, and whether each is a number; those that aren't become NaN."""
    if set(map(type, values)) <= {int, float}:
        try:
            return np.array(values, np.float64), np.ones(len(values), bool)
        except OverflowError:  # An integer beyond 1e308.
            pass
    numeric = np.array([isinstance(value, int | float) for value in values], bool)
    pairs = zip(values, numeric, strict=True)
    return np.array([_as_float(value) if good else np.nan for value, good in pairs]), numeric


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return np.inf


def as_boxes(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) boxes as float64, and whether each is four numbers; those that aren't become NaN."""
    lists = np.array([isinstance(box, list) and len(box) == 4 for box in values], bool)
    boxes = np.full((len(values), 4), np.nan)
    chosen = [values[index] for index in np.flatnonzero(lists)]
    numbers, numeric = as_numbers(list(chain.from_iterable(chosen)))
    boxes[lists] = numbers.reshape(-1, 4)
    lists[lists] = numeric.reshape(-1, 4).all(1)
    boxes[~lists] = np.nan
    return boxes, lists


def as_flags(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each value is true, absent ones being false, and whether each is a number.

    ``"0"`` is true in Python: an object whose ``iscrowd`` is text is passed over.
    """
    if set(map(type, values)) <= {int, bool}:
        return np.array(values, bool), np.ones(len(values), bool)
    good = np.array([v is ABSENT or isinstance(v, int | float) for v in values], bool)
    return np.array([v is not ABSENT and bool(v) for v in values], bool), good


def index_ids(ids: Sequence[Any]) -> tuple[dict[Any, int], np.ndarray]:
    """Where each id occurs last, and which items have an id that a later one takes from them."""
    index = dict(zip(_hashable(ids), range(len(ids)), strict=True))
    lost = np.ones(len(ids), bool)
    lost[list(index.values())] = False
    return index, lost


def find_ids(ids: Sequence[Any], index: dict[Any, int]) -> np.ndarray:
    """(N,) places of the ids in an index, -1 for those that it lacks."""
    return np.array([index.get(value, -1) for value in _hashable(ids)], np.int64)


def _hashable(ids: Sequence[Any]) -> Sequence[Any]:
    if not {list, dict} & set(map(type, ids)):
        return ids
    return [str(value) if isinstance(value, list | dict) else value for value in ids]
