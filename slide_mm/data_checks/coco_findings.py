"""What to say of a COCO file: counts, damage, and what a training or a test would end with."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from slide_mm.data_checks.coco_file import (
    CocoFile,
    column,
    index_ids,
    is_absent,
)
from slide_mm.data_checks.coco_usage import Reading, Usage
from slide_mm.data_checks.findings import Finding, Level, fact, list_some, problem, refusal
from slide_mm.data_checks.reasons import AREA, BOX, EXPLANATIONS, IMAGE_REASONS, ImageReason

# Of so many annotations one may be damaged: COCO's own files have a few boxes without a side.
_RARE = 1000
# Beyond its image by more than a pixel and this part of its side.
_OVERHANG = 0.01


def describe_usage(
    path: str, file: CocoFile, usage: Usage, reading: Reading, name_key: str = "file_name"
) -> list[Finding]:
    """All that is to be said of a file, of what is used of it as a dataset reads it.

    Args:
        path: Its path.
        file: What it holds.
        usage: What is used of it.
        reading: How it is read.
        name_key: The images' key that names their files.
    """
    return [
        *_count_images(file, usage),
        *_count_annotations(usage),
        *_check_images(path, file, usage, name_key),
        *check_categories(path, file, usage, reading),
        *_check_annotation_ids(path, file, usage, reading),
        *_check_annotations(path, file, usage),
    ]


def _count_images(file: CocoFile, usage: Usage) -> Iterator[Finding]:
    if not file.images:
        yield problem("it lists no images")
        return
    text = f"{len(file.images)} images"
    text += _list_unused(usage.image_reasons, IMAGE_REASONS)
    counts = np.bincount(usage.image_of[usage.used], minlength=len(file.images))
    empty = int((usage.image_used & (counts == 0)).sum())
    if empty and file.annotations:
        text += f"; {empty} are used without an object"
    yield fact(text)


def _count_annotations(usage: Usage) -> Iterator[Finding]:
    if not len(usage.reasons):
        return
    labels = np.unique(usage.label_of[usage.used])
    absent = [str(name) for label, name in enumerate(usage.names) if label not in labels]
    text = f"{len(usage.reasons)} annotations"
    if len(labels):
        text += f" of {len(labels)} classes"
        text += f" (never: {list_some(absent)})" if absent else ""
    briefs = {reason: explanation.brief for reason, explanation in EXPLANATIONS.items()}
    yield fact(text + _list_unused(usage.reasons, briefs))


def _list_unused(reasons: np.ndarray, briefs: Mapping[int, str]) -> str:
    counts = np.bincount(reasons, minlength=1)
    if counts[0] == len(reasons):
        return ""
    unused = [f"{counts[x]} {brief}" for x, brief in briefs.items() if counts[x : x + 1].any()]
    return f", of which {counts[0]} are used; not used: {', '.join(unused)}"


def _check_images(path: str, file: CocoFile, usage: Usage, name_key: str) -> Iterator[Finding]:
    ids = column(file.images, "id")
    total = len(ids)
    for key in ("id", name_key, "width", "height"):
        lacking = np.flatnonzero(is_absent(column(file.images, key)))
        if lacking.size:
            example = {k: v for k, v in file.images[lacking[0]].items() if k in ("id", name_key)}
            yield refusal(
                f"{lacking.size} of {total} images in {path} have no {key!r} (for example "
                f"{example}): add it to each",
            )
    yield from _check_id_types(path, "images", ids)
    lost = np.flatnonzero(usage.image_reasons == ImageReason.LOST)
    if lost.size:
        first = ids[lost[0]]
        names = [str(x.get(name_key)) for x in file.images if x.get("id") == first]
        yield refusal(
            f"{lost.size} of {total} images in {path} are lost, as a later one has their id (id "
            f"{first!r} is that of {list_some(names)}), which gets their boxes: give every image "
            "an id of its own, and its annotations too",
        )
    given = ~(is_absent(column(file.images, "width")) | is_absent(column(file.images, "height")))
    wrong = np.flatnonzero(given & ~(np.isfinite(usage.sizes) & (usage.sizes > 0)).all(1))
    if wrong.size:
        image = file.images[wrong[0]]
        yield refusal(
            f"{wrong.size} of {total} images in {path} have a width or height that is no positive "
            f"number (for example image {ids[wrong[0]]!r}: {image['width']!r} x "
            f"{image['height']!r}): write their size in pixels",
        )


def check_categories(
    path: str, file: CocoFile, usage: Usage, reading: Reading
) -> Iterator[Finding]:
    """Compare a file's categories with the classes; see :func:`describe_usage`."""
    if isinstance(reading.classes, str):
        yield refusal(
            f"metainfo.classes is the text {reading.classes!r}: write a tuple, "
            f"({reading.classes!r},)",
        )
        return
    for key in ("id", "name"):
        lacking = int(is_absent(column(file.categories, key)).sum())
        if lacking:
            yield refusal(f"{lacking} categories in {path} have no {key!r}: add it")
            return
    _, twice = index_ids(usage.categories)
    if twice.any():
        yield refusal(
            f"{int(twice.sum())} categories in {path} have the id of another one (for example "
            f"{usage.categories[np.flatnonzero(twice)[0]]!r}): give each its own",
        )
    elif usage.names != list(reading.classes):
        yield _compare_names(path, file, usage, reading)


def _compare_names(path: str, file: CocoFile, usage: Usage, reading: Reading) -> Finding:
    """Labels follow the file's order of categories and names the config's."""
    classes = list(reading.classes)
    missing = [str(name) for name in classes if name not in usage.names]
    in_file = tuple(usage.names or column(file.categories, "name"))
    if sorted(usage.names) == sorted(classes):
        place = next(i for i, name in enumerate(classes) if usage.names[i] != name)
        return refusal(
            f"metainfo.classes is in another order than the categories of {path}, by which "
            f"MMDetection numbers labels: label {place} is {usage.names[place]!r} in the file and "
            f"{classes[place]!r} in the config: set metainfo.classes to {_shorten(in_file)}",
        )
    if missing:
        text = (
            f"{len(missing)} of the config's {len(classes)} classes are not in the annotation file "
            f"{path}: {list_some(missing)}; it has {_shorten(in_file)}: set metainfo.classes to "
            "its category names"
        )
        # Labels that the file has keep their numbers where only the last classes are missing.
        harmless = usage.names and usage.names == classes[: len(usage.names)]
        return Finding(Level.PROBLEM if harmless else Level.REFUSAL, text)
    return refusal(
        f"{path} has {len(usage.names)} categories for the config's {len(classes)} classes, "
        f"{_shorten(in_file)}: let every name occur once in both, in the same order",
    )


def _shorten(names: Sequence[Any], most: int = 20) -> str:
    return str(tuple(names)) if len(names) <= most else f"({list_some([*map(repr, names)], most)})"


def _check_id_types(path: str, items: str, ids: Sequence[Any]) -> Iterator[Finding]:
    """Ids are keys of dicts in pycocotools, which lists and dicts can't be."""
    if {list, dict} & set(map(type, ids)):
        wrong = [value for value in ids if isinstance(value, list | dict)]
        yield refusal(
            f"{len(wrong)} of {len(ids)} {items} in {path} have a list or dict for an id (for "
            f"example {wrong[0]!r}): give each a number",
        )


def _check_annotation_ids(
    path: str, file: CocoFile, usage: Usage, reading: Reading
) -> Iterator[Finding]:
    ids = file.column("id")
    yield from _check_id_types(path, "annotations", ids)
    if reading.panoptic:  # Ids of segments are those of one image.
        ids = list(zip(usage.image_of.tolist(), ids, strict=True))
    _, lost = index_ids(ids)
    lost &= ~is_absent(file.column("id"))
    if lost.any():
        example = file.annotations[np.flatnonzero(lost)[0]]["id"]
        yield refusal(
            f"{int(lost.sum())} of {len(ids)} annotations in {path} have the id of another one "
            f"(for example {example!r}): give each its own",
        )


def _check_annotations(path: str, file: CocoFile, usage: Usage) -> Iterator[Finding]:
    total = len(usage.reasons)
    for reason, explanation in EXPLANATIONS.items():
        rows = np.flatnonzero(usage.reasons == reason)
        is_rare = explanation.level < Level.REFUSAL and _RARE * rows.size <= total
        if rows.size and explanation.level > Level.FACT and not is_rare:
            example = show_annotation(file.annotations[rows[0]], explanation.shows)
            yield Finding(
                explanation.level,
                f"{rows.size} of {total} annotations in {path} {explanation.why} (for example "
                f"{example}): {explanation.advice}",
            )
    empty = np.flatnonzero(usage.empty_masks)
    if empty.size:
        example = show_annotation(file.annotations[empty[0]], "segmentation")
        kind = fact if _RARE * empty.size <= total else problem
        yield kind(
            f"{empty.size} of {total} annotations in {path} have a mask without a pixel of the "
            f"image (for example {example}): write polygons in pixels of the image",
        )
    overhang = int((usage.used & _reach_beyond(usage)).sum())
    if overhang:
        yield fact(f"{overhang} boxes reach beyond their image")


def _reach_beyond(usage: Usage) -> np.ndarray:
    limits = usage.image_sizes
    slack = np.maximum(1, _OVERHANG * limits)
    corners = usage.boxes[:, :2]
    return ((corners < -slack) | (corners + usage.boxes[:, 2:] > limits + slack)).any(1)


def show_annotation(annotation: dict[str, Any], key: str) -> str:
    """Name an annotation and show one of its values, short."""
    text = f"annotation {annotation.get('id')!r} of image {annotation.get('image_id')!r}"
    if key in annotation and key != "image_id":
        value = annotation[key]
        if isinstance(value, list):
            value = [part.tolist() if isinstance(part, array) else part for part in value]
        value = repr(value)
        text += f" with {key} {value if len(value) <= 80 else value[:77] + '...'}"
    return text


def check_metric_keys(path: str, file: CocoFile, usage: Usage, masks: bool) -> Iterator[Finding]:
    """What pycocotools needs of the annotations that it scores.

    Args:
        path: The metric's annotation file.
        file: What it holds.
        usage: What a dataset uses of it.
        masks: Whether masks are scored.
    """
    scored = (usage.image_of >= 0) & (usage.label_of >= 0)
    total = int(scored.sum())
    needs = {
        "iscrowd": 'add "iscrowd": 0 to each that is one object',
        "area": f"add {AREA}",
        "bbox": f"add {BOX}",
    }
    if masks:
        needs["segmentation"] = "add masks, or set the metric to 'bbox' alone"
    for key, advice in needs.items():
        values = file.column(key)
        lacking = is_absent(values)
        if key == "segmentation":
            lacking |= np.array([not value for value in values], bool)
        rows = np.flatnonzero(scored & lacking)
        if rows.size:
            example = show_annotation(file.annotations[rows[0]], key)
            yield refusal(
                f"{rows.size} of {total} annotations in {path} have no {key!r} (for example "
                f"{example}), and CocoMetric needs it: {advice}",
            )
    zeros = sum(x is not True and x == 0 for x in file.column("id"))
    if zeros:
        yield problem(
            f"an annotation in {path} has the id 0, which pycocotools takes for none: finding it "
            "counts as an error; begin at 1",
        )


def count_unlike_images(usage: Usage, file: CocoFile, scored: CocoFile) -> int:
    """Count the images that a metric scores and the dataset leaves out, or the other way round."""
    ids = column(file.images, "id")
    used = {str(ids[index]) for index in np.flatnonzero(usage.image_used)}
    return len(used ^ {str(value) for value in column(scored.images, "id")})
