"""Why MMDetection doesn't use an annotation."""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from slide_mm.data_checks.findings import Level

BOX, AREA = "[left, top, width, height] in pixels", "the mask's area, or the box's width x height"


class Reason(IntEnum):
    """What becomes of an annotation; the lower ones come first where several apply."""

    USED = 0
    NO_ID = 1
    NO_IMAGE_ID = 2
    NO_CATEGORY_ID = 3
    UNKNOWN_IMAGE = 4
    TEXT_FLAG = 5
    IGNORED = 6
    NO_BOX = 7
    BAD_BOX = 8
    NAN_BOX = 9
    FLAT_BOX = 10
    OUTSIDE = 11
    NO_AREA = 12
    BAD_AREA = 13
    ZERO_AREA = 14
    FRACTIONS = 15
    SMALL_BOX = 16
    UNKNOWN_CATEGORY = 17
    OTHER_CLASS = 18
    INFINITE_BOX = 19
    LEFT_OUT = 20
    NO_MASK = 21
    BROKEN_MASK = 22
    CROWD = 23
    SHORT_MASK = 24
    RUN_LENGTHS = 25


class ImageReason(IntEnum):
    """What becomes of an image."""

    USED = 0
    LOST = 1
    EMPTY = 2
    CROWDS = 3
    SMALL = 4
    INDICES = 5


IMAGE_REASONS = {
    ImageReason.LOST: "whose id a later one has",
    ImageReason.EMPTY: "without an object of the classes",
    ImageReason.CROWDS: "with nothing but crowds",
    ImageReason.SMALL: "with a side below min_size",
    ImageReason.INDICES: "left out by indices",
}


@dataclass(frozen=True)
class Explanation:
    """How a reason is told: "3 annotations of FILE <why> (for example ...): <advice>"."""

    level: Level
    brief: str
    why: str = ""
    advice: str = ""
    shows: str = "bbox"


_fact, _problem, _refusal = (partial(Explanation, level) for level in Level)


def _missing(key: str, advice: str) -> Explanation:
    return _refusal(f"without {key}", f"have no {key!r}", advice)


EXPLANATIONS = {
    Reason.NO_ID: _missing("id", "number the annotations"),
    Reason.NO_IMAGE_ID: _missing("image_id", "name the image of each"),
    Reason.NO_CATEGORY_ID: _missing("category_id", "name the category of each"),
    Reason.UNKNOWN_IMAGE: _problem(
        "of unknown images",
        "have an image_id that none of the file's images has",
        "add these images, or remove the annotations",
        shows="image_id",
    ),
    Reason.TEXT_FLAG: _refusal(
        "with text as iscrowd or ignore",
        "have an iscrowd or ignore that is no number, and any text counts as yes",
        "write 0 or 1",
        shows="iscrowd",
    ),
    Reason.IGNORED: _fact("marked ignore"),
    Reason.NO_BOX: _missing("bbox", f"add {BOX}"),
    Reason.BAD_BOX: _refusal(
        "with a bbox that is not four numbers",
        "have a bbox that is not four numbers",
        f"write {BOX}",
    ),
    Reason.NAN_BOX: _problem(
        "with NaN in the bbox", "have NaN in their bbox and are not used", f"write {BOX}"
    ),
    Reason.FLAT_BOX: _problem(
        "with a side of 0 or less",
        "have a bbox with a side of 0 or less and are not used",
        f"write {BOX}",
    ),
    Reason.OUTSIDE: _problem(
        "outside the image",
        "have a bbox outside their image and are not used",
        f"write {BOX} of the image",
    ),
    Reason.NO_AREA: _missing("area", f"add {AREA}"),
    Reason.BAD_AREA: _refusal(
        "with an area that is no number",
        "have an area that is no number",
        f"write {AREA}",
        shows="area",
    ),
    Reason.ZERO_AREA: _problem(
        "with area 0 or less",
        "have an area of 0 or less and are not used",
        f"write {AREA}",
        shows="area",
    ),
    Reason.FRACTIONS: _problem(
        "in fractions of the image",
        "have a bbox in fractions of the image and are not used, as its sides are below one pixel",
        f"write {BOX}",
    ),
    Reason.SMALL_BOX: _problem(
        "with a side below one pixel",
        "have a bbox with a side below one pixel and are not used",
        f"write {BOX}, or remove them",
    ),
    Reason.UNKNOWN_CATEGORY: _refusal(
        "of unknown categories",
        "have a category_id that none of the file's categories has",
        "add these categories to the file and to metainfo.classes, or remove the annotations",
        shows="category_id",
    ),
    Reason.OTHER_CLASS: _fact("of classes that the config lacks"),
    Reason.INFINITE_BOX: _refusal(
        "with an infinite bbox", "have an infinite bbox, which makes losses NaN", f"write {BOX}"
    ),
    Reason.LEFT_OUT: _fact("in images that are left out"),
    Reason.NO_MASK: _refusal(
        "without a mask",
        "have no segmentation, and the pipeline loads masks",
        "add masks (a box as a polygon will do), remove these annotations, or train a detector "
        "without masks: LoadAnnotations with_mask=False and no mask head",
        shows="segmentation",
    ),
    Reason.BROKEN_MASK: _refusal(
        "with a broken mask",
        "have a segmentation that cannot be drawn: not polygons of numbers in pixels, nor run "
        "lengths that fill an image of the size told in images",
        "mend or remove them",
        shows="segmentation",
    ),
    Reason.CROWD: _fact("crowds"),
    Reason.SHORT_MASK: _problem(
        "with polygons of fewer than 6 or an odd number of numbers",
        "have only polygons of fewer than 6 or an odd number of numbers and are not used",
        "write x, y of three corners or more",
        shows="segmentation",
    ),
    Reason.RUN_LENGTHS: _problem(
        "with run lengths as masks",
        "have run lengths as masks and are not used, as LoadAnnotations has poly2mask=False",
        "set poly2mask=True",
        shows="segmentation",
    ),
}
