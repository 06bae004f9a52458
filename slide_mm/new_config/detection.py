"""Folders of detection data: which annotation file is of which split, and where its images are."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.annotations import READERS, AnnotatedImage, read_json
from slide_mm.new_config.folders import draw_validation, iter_files, split_of

# What this module writes beside the data; it is not taken for data when it is found again.
_MADE = "made by slide_mm's new_config.py"
# Images that are looked for; the data check looks for all.
_SAMPLE = 50


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
        classes: Names, in the order of the file's categories.
        splits: By ``'train'`` and ``'val'``, maybe ``'test'``.
        without_mask: Number of objects to train on that have a box alone.
    """

    layout: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    without_mask: int


def find_detection(root: Path, seed: int) -> DetectionData:
    """Find annotations of objects in a folder.

    Other formats than COCO's are written beside the data as ``coco_train.json`` and so on; so are
    the two parts of annotations that come in one.

    Args:
        root: The folder.
        seed: Of the drawing of validation images, where nothing says which they are.

    Raises:
        ConfigError: If there are no annotations or several for a split, or no images to them.
    """
    files = _find_coco(root)
    if files:
        return _describe(root, "COCO", _complete(root, files, seed))
    for layout, read in READERS.items():
        images = read(root)
        if images:
            contents = _convert(images, root, seed)
            files = {name: _write(root, name, content) for name, content in contents.items()}
            return _describe(root, layout, files)
    raise ConfigError(
        f"{root} has no annotations: looked for .json files of COCO or LabelMe, .xml files of "
        "Pascal VOC, and .txt files of YOLO beside images or in labels/ for images/"
    )


def _find_coco(root: Path) -> dict[str | None, Path]:
    """COCO's files by split, under None the one that belongs to none."""
    found: dict[str | None, list[Path]] = {}
    for path in iter_files(root, {".json"}):
        content = read_json(path)
        if isinstance(content, dict) and _is_of_objects(content):
            found.setdefault(split_of(path, root), []).append(path)
    if "train" in found:
        found.pop(None, None)
    return {split: _only(split, paths, root) for split, paths in found.items()}


def _is_of_objects(content: Mapping[str, Any]) -> bool:
    info, lists = content.get("info"), [content.get(key) for key in ("images", "categories")]
    objects = content.get("annotations")
    if isinstance(info, dict) and info.get("description") == _MADE:
        return False
    return all(isinstance(x, list) for x in (*lists, objects)) and (
        not objects or (isinstance(objects[0], dict) and "bbox" in objects[0])
    )


def _only(split: str | None, paths: Sequence[Path], root: Path) -> Path:
    """The only file of a split, or the one called instances, as COCO's own are."""
    instances = [path for path in paths if path.name.startswith("instances")]
    chosen = instances if len(instances) == 1 else paths
    if len(chosen) > 1:
        names = " and ".join(str(path.relative_to(root)) for path in chosen[:2])
        raise ConfigError(
            f"{root} has {len(chosen)} annotation files for {split or 'all images'}, such as "
            f"{names}: leave one, or say train, val or test in their names"
        )
    return chosen[0]


def _complete(root: Path, files: Mapping[str | None, Path], seed: int) -> dict[str, Path]:
    """Files to train and to validate with, of which there may be one so far."""
    held_out = files.get("val") or files.get("test")
    if "train" in files and held_out:
        return {"train": files["train"], "val": held_out}
    if len(files) > 1:
        names = " and ".join(str(path.relative_to(root)) for path in files.values())
        raise ConfigError(f"{root} has {names}, and none to train on: say train in its name")
    (file,) = files.values()
    content = read_json(file)
    parts = _draw(content, seed)
    return {name: _write(root, name, part) for name, part in parts.items()}


def _draw(content: Mapping[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """Divide the images of annotations, and the annotations with them."""
    used = {item.get("image_id") for item in content["annotations"]}
    with_objects = [image for image in content["images"] if image.get("id") in used]
    without = [image for image in content["images"] if image.get("id") not in used]
    parts = {}
    names = ("train", "val")
    for name, images in zip(names, draw_validation(with_objects, without, seed), strict=True):
        ids = {image["id"] for image in images}
        objects = [item for item in content["annotations"] if item["image_id"] in ids]
        parts[name] = {**content, "images": images, "annotations": objects}
    return parts


def _convert(images: Sequence[AnnotatedImage], root: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Put images and objects in COCO's form, by split."""
    by_split: dict[str | None, list[AnnotatedImage]] = {}
    for image in images:
        by_split.setdefault(image.split, []).append(image)
    names = sorted({item.name for image in images for item in image.objects}, key=_sort_key)
    if "train" in by_split and ("val" in by_split or "test" in by_split):
        held_out = by_split.get("val") or by_split["test"]
        parts = {"train": by_split["train"], "val": held_out}
        return {name: _to_coco(part, names, root) for name, part in parts.items()}
    return _draw(_to_coco(images, names, root), seed)


def _sort_key(name: str) -> tuple[int, str]:
    """Numbers in their order, before names in theirs."""
    return (int(name), "") if name.isdecimal() else (sys.maxsize, name)


def _to_coco(images: Sequence[AnnotatedImage], names: Sequence[str], root: Path) -> dict[str, Any]:
    objects = []
    for number, image in enumerate(images, 1):
        for item in image.objects:
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    "category_id": names.index(item.name) + 1,
                    "bbox": list(item.box),
                    "area": _area(item.polygon) if item.polygon else item.box[2] * item.box[3],
                    "segmentation": [item.polygon] if item.polygon else [],
                    "iscrowd": 0,
                    "ignore": int(item.ignored),
                }
            )
    return {
        "images": [
            {
                "id": number,
                "file_name": os.path.relpath(image.path, root),
                "width": image.size[0],
                "height": image.size[1],
            }
            for number, image in enumerate(images, 1)
        ],
        "annotations": objects,
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
    }


def _area(polygon: Sequence[float]) -> float:
    """By the sum of the signed areas below the edges."""
    columns, rows = np.array(polygon[::2]), np.array(polygon[1::2])
    return float(abs(columns @ np.roll(rows, -1) - rows @ np.roll(columns, -1)) / 2)


def _write(root: Path, name: str, content: Mapping[str, Any]) -> Path:
    path = root / f"coco_{name}.json"
    with write_atomically(path) as file:
        file.write_text(json.dumps({**content, "info": {"description": _MADE}}), encoding="utf-8")
    return path


def _describe(root: Path, layout: str, files: Mapping[str, Path]) -> DetectionData:
    contents = {name: read_json(path) for name, path in files.items()}
    objects = contents["train"]["annotations"]
    if not objects:
        raise ConfigError(f"{files['train']} has no objects: there is nothing to learn")
    used = {
        item.get("category_id") for content in contents.values() for item in content["annotations"]
    }
    splits = {
        name: Split(
            path,
            _find_images(root, path, contents[name]["images"]),
            len(contents[name]["images"]),
            len(contents[name]["annotations"]),
        )
        for name, path in files.items()
    }
    return DetectionData(
        layout,
        tuple(x["name"] for x in contents["train"]["categories"] if x.get("id") in used),
        splits,
        sum(not item.get("segmentation") for item in objects),
    )


def _find_images(root: Path, ann_file: Path, images: Sequence[Mapping[str, Any]]) -> Path:
    """The folder in which most of the images that a file names are."""
    names = [str(image.get("file_name")) for image in images]
    names = names[:: max(1, len(names) // _SAMPLE)]
    folders = [path for path in root.rglob("*") if path.is_dir()]
    same_split = split_of(ann_file, root)

    def rank(folder: Path) -> tuple:
        found = sum((folder / name).is_file() for name in names)
        return found, split_of(folder, root) == same_split, -len(folder.parts)

    best = max([ann_file.parent, root, *sorted(folders)], key=rank)
    found = rank(best)[0]
    if found < len(names):
        missing = next(name for name in names if not (best / name).is_file())
        raise ConfigError(
            f"{ann_file} names {missing}, which is not in {best}, where {found} of {len(names)} "
            f"of its images are, nor with all others elsewhere in {root}: add what is missing"
        )
    return best
