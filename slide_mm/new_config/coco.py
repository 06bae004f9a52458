"""COCO's annotation files as people have them, and what is mended before they are trained on."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.folders import iter_files, normalize, split_of
from slide_mm.new_config.objects import area_of, box_around, read_json, size_of

Content = dict[str, Any]

# What this package writes beside the data; it is not taken for data when it is found again.
MADE = "made by slide_mm's new_config.py"
# Images that decide on their folder, before all are looked for.
_SAMPLE = 50
_NEEDED = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id"),
}


def find_coco(root: Path) -> dict[str | None, tuple[Path, Content]]:
    """COCO's files below a folder by split, under None the one that belongs to none.

    Raises:
        ConfigError: If there are several for a split, or one lacks names or ids.
    """
    found: dict[str | None, list[tuple[Path, Content]]] = {}
    for path in iter_files(root, {".json"}):
        content = read_json(path)
        if isinstance(content, dict) and _is_of_objects(content) and not is_made(content):
            _check_form(path, content)
            found.setdefault(split_of(path, root), []).append((path, content))
    if "train" in found:
        found.pop(None, None)
    return {split: _only(split, files, root) for split, files in found.items()}


def is_made(content: Any) -> bool:
    """Whether this package wrote a file."""
    info = content.get("info") if isinstance(content, dict) else None
    return isinstance(info, dict) and info.get("description") == MADE


def _is_of_objects(content: Content) -> bool:
    """Captions and panoptic images have neither boxes nor masks of objects."""
    lists = [content.get(key) for key in ("images", "annotations", "categories")]
    if not all(isinstance(x, list) for x in lists):
        return False
    first = lists[1][0] if lists[1] else {"bbox": None}
    return isinstance(first, dict) and ("bbox" in first or "segmentation" in first)


def _check_form(path: Path, content: Content) -> None:
    for items, keys in _NEEDED.items():
        for item in content[items]:
            values = [item.get(key) if isinstance(item, dict) else None for key in keys]
            if not all(isinstance(value, int | float | str) for value in values):
                raise ConfigError(
                    f"{path} is not of COCO's form: its {items} need {' and '.join(keys)}, and one "
                    f"is {str(item)[:80]}"
                )


def _only(
    split: str | None, files: Sequence[tuple[Path, Content]], root: Path
) -> tuple[Path, Content]:
    """The only file of a split, or the one called instances, as COCO's own are."""
    instances = [file for file in files if file[0].name.startswith("instances")]
    chosen = instances if len(instances) == 1 else files
    if len(chosen) > 1:
        names = " and ".join(str(path.relative_to(root)) for path, _ in chosen[:2])
        raise ConfigError(
            f"{root} has {len(chosen)} annotation files for {split or 'all images'}, such as "
            f"{names}: leave one, or say train, val or test in their names"
        )
    return chosen[0]


def find_classes(contents: Iterable[Content]) -> tuple[str, ...]:
    """Names of the categories that objects are of, in the order of the files."""
    contents = list(contents)
    used = {item.get("category_id") for content in contents for item in content["annotations"]}
    names = [
        str(category["name"])
        for content in contents
        for category in content["categories"]
        if category["id"] in used
    ]
    return tuple(dict.fromkeys(names))


def mend(content: Content, classes: Sequence[str], folder: Path) -> list[str]:
    """Give a file's items, in place, what MMDetection and CocoMetric need of them.

    Args:
        content: What the file holds.
        classes: Names of the classes, in the order that all splits are to have.
        folder: Where its images are.

    Returns:
        What was done.
    """
    done = {
        "annotations are numbered from 1": _number(content["annotations"]),
        "boxes, areas and iscrowd are given": _fill_in(content["annotations"]),
        "images are measured": _measure(content["images"], folder),
        "classes are named and ordered alike": _order_categories(content, classes),
    }
    return [text for text, was_needed in done.items() if was_needed]


def _number(annotations: Sequence[Content]) -> bool:
    """pycocotools takes the id 0 for none, and of two annotations with one id loses one."""
    ids = [str(item.get("id")) for item in annotations]
    if not {"None", "0"} & set(ids) and len(set(ids)) == len(ids):
        return False
    for number, item in enumerate(annotations, 1):
        item["id"] = number
    return True


def _fill_in(annotations: Sequence[Content]) -> bool:
    before = sum(map(len, annotations))
    for item in annotations:
        mask = item.get("segmentation")
        polygons = [x for x in mask if x] if isinstance(mask, list) else []
        with suppress(TypeError, ValueError, KeyError, IndexError):  # The data check tells.
            if "bbox" not in item and polygons:
                item["bbox"] = list(box_around(polygons))
            if "area" not in item:
                _, _, width, height = item["bbox"]
                item["area"] = sum(map(area_of, polygons)) if polygons else width * height
        item.setdefault("iscrowd", 0)
    return sum(map(len, annotations)) > before


def _measure(images: Sequence[Content], folder: Path) -> bool:
    unknown = [image for image in images if not _is_size(image.get("width"), image.get("height"))]
    for image in unknown:
        image["width"], image["height"] = size_of(folder / image["file_name"])
    return bool(unknown)


def _is_size(*sides: Any) -> bool:
    return all(isinstance(side, int | float) and side > 0 for side in sides)


def _order_categories(content: Content, classes: Sequence[str]) -> bool:
    """MMDetection numbers labels by the file's order of the categories that have a class's name."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    if [name for name in names.values() if str(name) in classes] == list(classes):
        return False
    numbers = {name: number for number, name in enumerate(classes, 1)}
    for item in content["annotations"]:
        item["category_id"] = numbers.get(str(names.get(item.get("category_id"))), -1)
    content["categories"] = number_categories(classes, content["categories"])
    return True


def number_categories(names: Sequence[str], known: Iterable[Content] = ()) -> list[Content]:
    """Categories from 1, with the kinds that MMDetection's error analysis wants to know."""
    kinds = {str(category["name"]): category.get("supercategory") for category in known}
    return [
        {"id": number, "name": name, "supercategory": kinds.get(name) or name}
        for number, name in enumerate(names, 1)
    ]


def find_images(
    root: Path, file: Path, content: Content, found: Sequence[Path]
) -> tuple[Path, bool]:
    """Find a file's images; what it calls them is changed, where that leads nowhere.

    Names may be of another machine: absolute, with backslashes, in other folders or in capitals.

    Args:
        root: Folder of all data.
        file: The annotation file.
        content: What it holds.
        found: All images below ``root``.

    Returns:
        The folder that the names begin in, and whether they were changed.

    Raises:
        ConfigError: If an image is nowhere, or two may be meant.
    """
    names = [str(image["file_name"]) for image in content["images"]]
    folder = _find_folder(root, file, names[:: max(1, len(names) // _SAMPLE)], found)
    if all((folder / name).is_file() for name in names):
        return folder, False
    by_name: dict[str, list[Path]] = {}
    for path in found:
        by_name.setdefault(normalize(path.name), []).append(path)
    missing = []
    for image, name in zip(content["images"], names, strict=True):
        parts = PurePosixPath(name.replace("\\", "/")).parts
        path = _choose(root, file, parts, by_name.get(normalize(parts[-1]), []))
        if path:
            image["file_name"] = path.relative_to(root).as_posix()
        else:
            missing.append(name)
    if missing:
        raise ConfigError(
            f"{file} names {missing[0]}, which is nowhere in {root}, where "
            f"{len(names) - len(missing)} of its {len(names)} images are: add what is missing"
        )
    return root, True


def _find_folder(root: Path, file: Path, names: Sequence[str], found: Sequence[Path]) -> Path:
    """The folder in which most images of a file are by their names."""
    folders = {folder for path in found for folder in path.parents}
    folders = {folder for folder in folders if root in folder.parents}

    def rank(folder: Path) -> tuple[int, bool]:
        number = sum((folder / name).is_file() for name in names)
        return number, split_of(folder, root) == split_of(file, root)

    return max([file.parent, root, *sorted(folders)], key=rank)


def _choose(
    root: Path, file: Path, parts: Sequence[str], candidates: Sequence[Path]
) -> Path | None:
    """The image whose path ends most like a name, of the file's own split if there are several."""
    if not candidates:
        return None

    def rank(path: Path) -> tuple[int, bool]:
        pairs = zip(reversed(path.parts), reversed(parts), strict=False)
        alike = takewhile(bool, (normalize(first) == normalize(second) for first, second in pairs))
        return sum(alike), split_of(path.parent, root) == split_of(file, root)

    path, *others = sorted(candidates, key=rank, reverse=True)
    if others and rank(others[0]) == rank(path):
        raise ConfigError(f"{file} names {'/'.join(parts)}, which may be {path} or {others[0]}")
    return path


def without_mask(annotations: Iterable[Mapping[str, Any]]) -> int:
    """Number of annotations that have a box alone."""
    masks = [item.get("segmentation") for item in annotations]
    return sum(not mask or (isinstance(mask, list) and not any(mask)) for mask in masks)
