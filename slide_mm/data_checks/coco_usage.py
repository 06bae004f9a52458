"""Which images and annotations of a COCO file MMDetection uses, and why it doesn't use the others.

The rules are those of the datasets' ``parse_data_info`` and ``filter_data`` and of the pipeline's
LoadAnnotations, for all annotations at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slide_mm.data_checks.coco_file import (
    CocoFile,
    as_boxes,
    as_flags,
    as_numbers,
    column,
    find_ids,
    index_ids,
    is_absent,
)
from slide_mm.data_checks.masks import Mask, check_masks
from slide_mm.data_checks.reasons import ImageReason, Reason


@dataclass(frozen=True)
class Reading:
    """How a dataset reads its annotation file.

    Attributes:
        classes: Names of the config's classes.
        panoptic: Whether it reads segments of panoptic images.
        sort_categories: Whether it sorts the file's categories by id.
        all_categories: Whether it takes all categories of the file, whatever their names.
        filters: Whether it leaves out images.
        filter_empty: Whether it leaves out images without an object of its classes.
        filter_crowds: Whether also those with nothing but crowds.
        min_size: Side below which it leaves out an image.
        indices: Those of the images left that are used; None for all.
        masks: Whether its pipeline loads masks.
        only_polygons: Whether it takes only masks that are polygons.
    """

    classes: Sequence[str]
    panoptic: bool = False
    sort_categories: bool = False
    all_categories: bool = False
    filters: bool = False
    filter_empty: bool = False
    filter_crowds: bool = False
    min_size: float = 0
    indices: int | Sequence[int] | None = None
    masks: bool = False
    only_polygons: bool = False


@dataclass
class Usage:
    """What is used of a file.

    Attributes:
        categories: Ids of the categories that are used, in the order of their labels.
        names: Their names.
        image_reasons: :class:`ImageReason` of every image.
        image_of: Place of each annotation's image among the images, -1 for none.
        label_of: Its label, -1 for none.
        reasons: Its :class:`Reason`.
        sizes: (N, 2) width and height of every image, NaN where they are no numbers.
        boxes: (M, 4) bbox of every annotation.
        empty_masks: Whether a used annotation's mask covers no pixel of the image.
    """

    categories: list[Any]
    names: list[str]
    image_reasons: np.ndarray
    image_of: np.ndarray
    label_of: np.ndarray
    reasons: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    empty_masks: np.ndarray = field(repr=False)

    @property
    def used(self) -> np.ndarray:
        """Whether each annotation is used."""
        return self.reasons == Reason.USED

    @property
    def image_used(self) -> np.ndarray:
        """Whether each image is used."""
        return self.image_reasons == ImageReason.USED

    @property
    def image_sizes(self) -> np.ndarray:
        """(M, 2) width and height of every annotation's image, NaN where it has none."""
        return np.vstack([self.sizes, [[np.nan, np.nan]]])[self.image_of]


def find_usage(file: CocoFile, reading: Reading) -> Usage:
    """Tell which images and annotations are used."""
    categories, names = _choose_categories(file, reading)
    index, lost = index_ids(column(file.images, "id"))
    sizes = np.stack(
        [as_numbers(column(file.images, key))[0] for key in ("width", "height")], axis=1
    )
    image_of = find_ids(file.column("image_id"), index)
    label_of = find_ids(
        file.column("category_id"), {category: label for label, category in enumerate(categories)}
    )
    boxes, four_numbers = as_boxes(file.column("bbox"))
    usage = Usage(
        *(categories, names, lost * np.int8(ImageReason.LOST), image_of, label_of),
        reasons=np.zeros(len(file.annotations), np.int8),
        sizes=sizes,
        boxes=boxes,
        empty_masks=np.zeros(len(file.annotations), bool),
    )
    _find_unloaded(usage, file, reading, four_numbers)
    crowds, _ = as_flags(file.column("iscrowd"))
    _leave_out_images(usage, file, reading, crowds)
    _give(usage, Reason.LEFT_OUT, ~np.append(usage.image_used, False)[image_of])
    if reading.masks and not reading.panoptic:
        _find_unmasked(usage, file, reading, crowds)
    _give(usage, Reason.CROWD, crowds)
    return usage


def _choose_categories(file: CocoFile, reading: Reading) -> tuple[list[Any], list[str]]:
    """Labels follow the file's order of categories, whatever the order of the classes."""
    categories = file.categories
    if reading.sort_categories:
        categories = sorted(categories, key=lambda category: category.get("id"))
    if not reading.all_categories:
        categories = [x for x in categories if x.get("name") in reading.classes]
    return column(categories, "id"), column(categories, "name")


def _give(usage: Usage, reason: Reason, where: np.ndarray) -> None:
    """Give a reason to the annotations that have none yet."""
    usage.reasons[where & usage.used] = reason


def _find_unloaded(
    usage: Usage, file: CocoFile, reading: Reading, four_numbers: np.ndarray
) -> None:
    """What parse_data_info stops at or passes over, in its order."""
    columns = {key: file.column(key) for key in ("id", "image_id", "category_id")}
    _give(usage, Reason.NO_ID, is_absent(columns["id"]))
    _give(usage, Reason.NO_IMAGE_ID, is_absent(columns["image_id"]))
    _give(usage, Reason.NO_CATEGORY_ID, is_absent(columns["category_id"]))
    _give(usage, Reason.UNKNOWN_IMAGE, usage.image_of < 0)
    for key in ("iscrowd",) if reading.panoptic else ("ignore", "iscrowd"):
        flags, good = as_flags(file.column(key))
        _give(usage, Reason.TEXT_FLAG, ~good)
        if key == "ignore":
            _give(usage, Reason.IGNORED, flags)
    _give(usage, Reason.NO_BOX, is_absent(file.column("bbox")))
    _give(usage, Reason.BAD_BOX, ~four_numbers)
    _find_bad_boxes(usage, reading)
    areas, numeric = as_numbers(file.column("area"))
    _give(usage, Reason.NO_AREA, is_absent(file.column("area")))
    _give(usage, Reason.BAD_AREA, ~numeric | np.isnan(areas))
    _give(usage, Reason.ZERO_AREA, areas <= 0)
    small = (usage.boxes[:, 2:] < 1).any(1)
    _give(usage, Reason.FRACTIONS, small & ((usage.boxes >= 0) & (usage.boxes <= 1)).all(1))
    _give(usage, Reason.SMALL_BOX, small)
    known, _ = index_ids(column(file.categories, "id"))
    of_file = find_ids(columns["category_id"], known) >= 0
    _give(usage, Reason.UNKNOWN_CATEGORY, ~of_file)
    _give(usage, Reason.OTHER_CLASS, usage.label_of < 0)
    _give(usage, Reason.INFINITE_BOX, np.isinf(usage.boxes).any(1))


def _find_bad_boxes(usage: Usage, reading: Reading) -> None:
    corners, sides = usage.boxes[:, :2], usage.boxes[:, 2:]
    _give(usage, Reason.NAN_BOX, np.isnan(usage.boxes).any(1))
    if reading.panoptic:
        return
    _give(usage, Reason.FLAT_BOX, (sides <= 0).any(1))
    with np.errstate(invalid="ignore"):  # Infinity minus infinity.
        overlap = np.minimum(corners + sides, usage.image_sizes) - np.maximum(corners, 0)
    _give(usage, Reason.OUTSIDE, ~(overlap > 0).all(1))


def _leave_out_images(usage: Usage, file: CocoFile, reading: Reading, crowds: np.ndarray) -> None:
    """What filter_data and ``indices`` leave out."""
    if reading.filters and reading.filter_empty:
        objects = _is_object(usage, file, reading, crowds)
        _leave_out(usage, ImageReason.EMPTY, _count_by_image(usage, objects) == 0)
        if reading.filter_crowds:
            single = usage.used & ~crowds
            _leave_out(usage, ImageReason.CROWDS, _count_by_image(usage, single) == 0)
    if reading.filters:
        _leave_out(usage, ImageReason.SMALL, ~(usage.sizes.min(1) >= reading.min_size))
    if reading.indices is not None:
        left = np.flatnonzero(usage.image_used)
        if isinstance(reading.indices, int):
            whole = reading.indices >= 0
            chosen = left[: reading.indices] if whole else left[reading.indices :]
        else:
            chosen = left[[i for i in reading.indices if -len(left) <= i < len(left)]]
        _leave_out(usage, ImageReason.INDICES, ~np.isin(np.arange(len(file.images)), chosen))


def _leave_out(usage: Usage, reason: ImageReason, where: np.ndarray) -> None:
    usage.image_reasons[where & usage.image_used] = reason


def _is_object(usage: Usage, file: CocoFile, reading: Reading, crowds: np.ndarray) -> np.ndarray:
    """Any annotation of a class counts, be it a box without area; of segments, things count."""
    if not reading.panoptic:
        return (usage.image_of >= 0) & (usage.label_of >= 0)
    things = {x.get("id") for x in file.categories if x.get("isthing")}
    is_thing = np.array([x.get("category_id") in things for x in file.annotations], bool)
    return usage.used & is_thing & ~crowds


def _count_by_image(usage: Usage, chosen: np.ndarray) -> np.ndarray:
    return np.bincount(usage.image_of[chosen], minlength=len(usage.image_reasons))


def _find_unmasked(usage: Usage, file: CocoFile, reading: Reading, crowds: np.ndarray) -> None:
    """What LoadAnnotations with_mask=True stops at or passes over."""
    rows = np.flatnonzero(usage.used)
    segmentations = [file.annotations[row].get("segmentation") for row in rows]
    masks = np.full(len(file.annotations), Mask.SOUND, np.int8)
    masks[rows] = check_masks(segmentations, usage.image_sizes[rows])
    _give(usage, Reason.NO_MASK, masks == Mask.ABSENT)
    _give(usage, Reason.BROKEN_MASK, masks == Mask.BROKEN)
    _give(usage, Reason.CROWD, crowds)
    _give(usage, Reason.SHORT_MASK, masks == Mask.TOO_SHORT)
    if reading.only_polygons:
        _give(usage, Reason.RUN_LENGTHS, masks == Mask.RUN_LENGTHS)
    usage.empty_masks = usage.used & (masks == Mask.EMPTY)
