"""Folders of detection data: which annotation file is of which split, and where its images are."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.coco import (
    MADE,
    Content,
    find_classes,
    find_coco,
    find_images,
    is_made,
    mend,
    number_categories,
    without_mask,
)
from slide_mm.new_config.folders import IMAGES, count_files, draw_validation, iter_files
from slide_mm.new_config.labelme import read_labelme
from slide_mm.new_config.objects import AnnotatedImage, read_json
from slide_mm.new_config.voc import read_voc
from slide_mm.new_config.yolo import read_yolo

READERS: dict[str, Callable[[Path], list[AnnotatedImage]]] = {
    "LabelMe": read_labelme,
    "Pascal VOC": read_voc,
    "YOLO": read_yolo,
}


@dataclass(frozen=True)
class Split:
    """Annotations of one split, in COCO's format.

    Attributes:
        ann_file: The file.
        images: Folder that its images' names begin in.
        num_images: Their number.
        num_objects: Number of annotations.
    """

    ann_file: Path
    images: Path
    num_images: int
    num_objects: int


@dataclass(frozen=True)
class DetectionData:
    """What a folder holds.

    Attributes:
        layout: Its format, in words.
        classes: Names, in the order of the files' categories.
        splits: By ``'train'`` and ``'val'``, maybe ``'test'``.
        num_without_mask: Number of objects that have a box alone.
        notes: Lines on what was left out or mended.
    """

    layout: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    num_without_mask: int
    notes: Sequence[str]


def find_detection(root: Path, seed: int) -> DetectionData:
    """Find annotations of objects in a folder.

    Other formats than COCO's are written beside the data as ``coco_train.json`` and so on; so are
    the two parts of annotations that come in one, and files of COCO that had to be mended.

    Args:
        root: The folder.
        seed: Of the drawing of validation images, where nothing says which they are.

    Raises:
        ConfigError: If there are no annotations or several for a split, or no images to them.
    """
    layout, notes, files = "COCO", [], find_coco(root)
    if not files:
        layout, notes, files = _convert(root)
    parts = _choose_splits(root, files)
    classes = find_classes(content for _, content in parts.values())
    named = {str(x["name"]) for _, content in parts.values() for x in content["categories"]}
    if named - set(classes):
        notes.append(f"left out: {', '.join(sorted(named - set(classes)))}: no object is of them")
    ready, images = {}, list(iter_files(root, IMAGES))
    for name, (file, content) in parts.items():
        folder, done = root, []
        if file:
            folder, moved = find_images(root, file, content, images)
            done = ["images are named by where they are"] * moved + mend(content, classes, folder)
        if done:
            notes.append(f"{file} is mended in a copy: {', '.join(done)}")
        ready[name] = None if done else file, folder, content
    if "val" not in ready:
        _, folder, content = ready["train"]
        ready = {name: (None, folder, part) for name, part in _draw(content, seed).items()}
    annotations = [item for *_, content in ready.values() for item in content["annotations"]]
    splits = {
        name: Split(
            file or _write(root, name, content),
            folder,
            len(content["images"]),
            len(content["annotations"]),
        )
        for name, (file, folder, content) in ready.items()
    }
    return DetectionData(layout, classes, splits, without_mask(annotations), notes)


def _convert(root: Path) -> tuple[str, list[str], dict[str | None, tuple[None, Content]]]:
    """Put images and objects of other formats in COCO's form, by split."""
    read = ((layout, reader(root)) for layout, reader in READERS.items())
    layout, images = next((found for found in read if found[1]), ("", []))
    if not images:
        raise ConfigError(
            f"{root} has no annotations: looked for .json files of COCO or LabelMe, .xml files of "
            "Pascal VOC, and .txt files of YOLO with the names of images; found "
            f"{count_files(root)}"
        )
    left_out = sum(image.left_out for image in images)
    notes = [f"left out: {left_out} points and lines, which are no objects"] if left_out else []
    classes = sorted({(item.number, item.name) for image in images for item in image.objects})
    names = list(dict.fromkeys(name for _, name in classes))
    by_split: dict[str | None, list[AnnotatedImage]] = {}
    for image in images:
        by_split.setdefault(image.split, []).append(image)
    if "train" in by_split and None in by_split:
        rest = by_split.pop(None)
        notes.append(f"left out: {len(rest)} images of no split, such as {rest[0].path}")
    return layout, notes, {x: (None, _to_coco(y, names, root)) for x, y in by_split.items()}


def _to_coco(images: Sequence[AnnotatedImage], names: Sequence[str], root: Path) -> Content:
    objects = []
    for number, image in enumerate(images, 1):
        for item in image.objects:
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": names.index(item.name) + 1,
                    "bbox": list(item.box),
                    "area": item.area,
                    "segmentation": item.mask or [],
                    "iscrowd": int(item.ignored),
                }
            )
    return {
        "images": [
            {
                "id": number,
                "file_name": image.path.relative_to(root).as_posix(),
                "width": image.size[0],
                "height": image.size[1],
            }
            for number, image in enumerate(images, 1)
        ],
        "annotations": objects,
        "categories": number_categories(names),
    }


def _choose_splits(
    root: Path, files: Mapping[str | None, tuple[Path | None, Content]]
) -> dict[str, tuple[Path | None, Content]]:
    """What to train on, validate and test with; validation is to be drawn where it is missing."""
    found = {split: part for split, part in files.items() if part[1]["annotations"]}
    train = found.get("train") or found.get(None)
    held_out = [found[split] for split in ("val", "test") if split in found]
    if not train:
        counts = (
            f"{len(content['annotations'])} of {split}" for split, (_, content) in files.items()
        )
        raise ConfigError(
            f"{root} has no objects to train on: found {' and '.join(counts)} objects; say train "
            "in the name of a file or folder, or annotate what is there"
        )
    return dict(zip(("train", "val", "test"), (train, *held_out), strict=False))


def _draw(content: Content, seed: int) -> dict[str, Content]:
    """Divide the images of annotations, and the annotations with them."""
    used = {item["image_id"] for item in content["annotations"]}
    with_objects = [image for image in content["images"] if image["id"] in used]
    without = [image for image in content["images"] if image["id"] not in used]
    parts = {}
    names = ("train", "val")
    for name, images in zip(names, draw_validation(with_objects, without, seed), strict=True):
        ids = {image["id"] for image in images}
        objects = [item for item in content["annotations"] if item["image_id"] in ids]
        parts[name] = {**content, "images": images, "annotations": objects}
    return parts


def _write(root: Path, name: str, content: Content) -> Path:
    path = root / f"coco_{name}.json"
    if path.exists() and not is_made(read_json(path)):
        raise ConfigError(f"{path} would be written over, and is yours: give it another name")
    with write_atomically(path) as file:
        file.write_text(json.dumps({**content, "info": {"description": MADE}}), encoding="utf-8")
    return path
