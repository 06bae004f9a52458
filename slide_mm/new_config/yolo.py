"""YOLO's annotations: a text file of the image's name, with boxes or polygons in fractions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.folders import (
    IMAGES,
    ImageFinder,
    iter_files,
    read_lines,
    read_lists,
    read_names,
    read_yaml,
    split_of,
    stem_of,
)
from slide_mm.new_config.objects import AnnotatedImage, AnnotatedObject, of_polygons, size_of

# A class and the numbers of a box, or more.
_OBJECT = re.compile(r"\d+(\.0*)?([ \t]+[-+.\deE]+){4,}[ \t]*$", re.MULTILINE)


def read_yolo(root: Path) -> list[AnnotatedImage]:
    """Read boxes or polygons.

    Splits are those that a YAML file names, or lists, or else names of folders.

    Raises:
        ConfigError: If a line or an image cannot be read, or labels are of no image.
    """
    finder = ImageFinder(root)
    files = _find_files(root, finder)
    if not files:
        return []
    names, has_keypoints, splits = _read_description(root)
    if not {"train", "val"} <= set(splits.values()):
        listed = read_lists(root, "")
        for path in finder.images:
            splits[path] = listed.get(stem_of(path.name)) or split_of(path.parent, root)
    images = []
    for path in finder.images:
        image = AnnotatedImage(path, size_of(path), splits.get(path))
        lines = read_lines(files[path]) if path in files else []
        for line in lines:
            numbers = line.split()[: 5 if has_keypoints else None]
            try:
                image.objects.append(_read_object(numbers, image.size, names))
            except (ValueError, LookupError, OverflowError) as error:
                raise ConfigError(
                    f"{files[path]} has the line {line!r}: give a class's number from 0"
                    f"{f' to {max(names)}' if names else ''}, and four numbers of a box, or six or "
                    "more of a polygon"
                ) from error
        images.append(image)
    return images


def _find_files(root: Path, finder: ImageFinder) -> dict[Path, Path]:
    """Label files by image."""
    files = {}
    for file in iter_files(root, {".txt"}):
        path = finder.find(file)
        if path:
            files[path] = file
        elif _OBJECT.match(file.read_text(encoding="utf-8", errors="replace").strip()):
            raise ConfigError(
                f"{file} has labels of no image: looked for an image called {file.stem} in {root}; "
                "add it, or remove the labels"
            )
    return files


def _read_description(root: Path) -> tuple[Mapping[int, str], bool, dict[Path, str | None]]:
    """Class names, whether objects have keypoints, and the images' splits as YAML files say."""
    contents = {path: read_yaml(path) for path in iter_files(root, {".yaml", ".yml"})}
    contents = {path: x for path, x in contents.items() if {"names", "nc"} & x.keys()}
    splits: dict[Path, str | None] = {}
    for path, content in contents.items():
        for split in ("train", "val", "test"):  # A folder of the latter may lie in one to train on.
            images = _images_of(content.get(split), content.get("path"), path.parent)
            splits |= dict.fromkeys(images, split)
    return read_names(root), any("kpt_shape" in x for x in contents.values()), splits


def _images_of(entries: Any, base: Any, folder: Path) -> list[Path]:
    """Images of a folder, a list of images, or several of them, as a YAML file names them."""
    images = []
    for entry in entries if isinstance(entries, list) else [entries]:
        path = _resolve(f"{base or ''}/{entry}", folder) if entry else None
        if path and path.is_dir():
            images += iter_files(path, IMAGES)
        elif path:
            found = (_resolve(line, path.parent) for line in read_lines(path))
            images += [image for image in found if image]
    return images


def _resolve(name: str, folder: Path) -> Path | None:
    """What a path means below a folder: it is often that of another machine."""
    parts = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".", "..")]
    paths = (folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in paths if path.exists()), None)


def _read_object(
    fields: list[str], size: tuple[int, int], names: Mapping[int, str]
) -> AnnotatedObject:
    label = int(float(fields[0]))
    name = names[label] if names else str(label)
    values = [float(number) * size[index % 2] for index, number in enumerate(fields[1:])]
    if len(values) == 4:
        x, y, width, height = values
        box = (x - width / 2, y - height / 2, width, height)
        return AnnotatedObject(name, box, number=label)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(fields)
    return of_polygons(name, [values], label)
