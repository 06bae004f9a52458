"""Objects in the formats of YOLO, Pascal VOC and LabelMe, for COCO's."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, UnidentifiedImageError

from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.folders import IMAGES, iter_files, read_names, split_of


@dataclass
class AnnotatedObject:
    """One object.

    Attributes:
        name: Of its class.
        box: Left, top, width and height, in pixels.
        polygon: x and y of its corners in turn, in pixels; None for a box alone.
        ignored: Whether it is neither to be learnt nor to be found.
    """

    name: str
    box: tuple[float, float, float, float]
    polygon: list[float] | None = None
    ignored: bool = False


@dataclass
class AnnotatedImage:
    """An image and its objects.

    Attributes:
        path: Its file.
        size: Width and height.
        split: ``'train'``, ``'val'``, ``'test'`` or None, if nothing says it.
        objects: All that is annotated.
    """

    path: Path
    size: tuple[int, int]
    split: str | None
    objects: list[AnnotatedObject] = field(default_factory=list)


def read_yolo(root: Path) -> list[AnnotatedImage]:
    """Read boxes or polygons of YOLO's form: a text file of the image's name, in fractions.

    Raises:
        ConfigError: If a line or an image cannot be read.
    """
    pairs = [(image, _yolo_labels(image, root)) for image in iter_files(root, IMAGES)]
    if not any(labels.is_file() for _, labels in pairs):
        return []
    names = _yolo_names(root)
    images = []
    for path, labels in pairs:
        image = AnnotatedImage(path, _size_of(path), split_of(path, root))
        lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
        for line in filter(str.strip, lines):
            try:
                image.objects.append(_yolo_object(line, image.size, names))
            except (ValueError, IndexError) as error:
                raise ConfigError(
                    f"{labels} has the line {line!r}: give a class's number from 0 and four "
                    "numbers of a box, or six or more of a polygon"
                ) from error
        images.append(image)
    return images


def _yolo_labels(image: Path, root: Path) -> Path:
    """The text file of an image: beside it, or in ``labels`` for ``images``."""
    parts = list(image.relative_to(root).parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            parts[index] = "labels"
            return root.joinpath(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def _yolo_names(root: Path) -> Mapping[int, str]:
    for path in iter_files(root, {".yaml", ".yml"}):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            return {int(number): str(name) for number, name in names.items()}
        if isinstance(names, list):
            return dict(enumerate(map(str, names)))
    return dict(enumerate(read_names(root) or []))


def _yolo_object(line: str, size: tuple[int, int], names: Mapping[int, str]) -> AnnotatedObject:
    label, *numbers = line.split()
    name = names[int(label)] if names else str(int(label))
    values = [float(number) * size[index % 2] for index, number in enumerate(numbers)]
    if len(values) == 4:
        x, y, width, height = values
        return AnnotatedObject(name, (x - width / 2, y - height / 2, width, height))
    if len(values) < 6 or len(values) % 2:
        raise ValueError(line)
    return AnnotatedObject(name, _box_around(values), values)


def read_voc(root: Path) -> list[AnnotatedImage]:
    """Read boxes of Pascal VOC's XML files.

    Raises:
        ConfigError: If a file cannot be read, or its image is nowhere.
    """
    files = list(iter_files(root, {".xml"}))
    if not files:
        return []
    by_stem = {path.stem: path for path in iter_files(root, IMAGES)}
    listed = {
        stem: path.stem
        for path in iter_files(root, {".txt"})
        if path.parent.name == "Main" and path.stem in ("train", "val", "test")
        for stem in path.read_text(encoding="utf-8").split()
    }
    return [_voc_image(path, root, by_stem, listed) for path in files]


def _voc_image(
    file: Path, root: Path, by_stem: Mapping[str, Path], listed: Mapping[str, str]
) -> AnnotatedImage:
    try:
        content = ElementTree.parse(file).getroot()
        objects = [_voc_object(node) for node in content.iter("object")]
    except (ElementTree.ParseError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{file} is no annotation of Pascal VOC: {error}") from error
    name = content.findtext("filename") or file.stem
    path = by_stem.get(file.stem) or by_stem.get(Path(name).stem)
    if path is None:
        raise ConfigError(f"{file} is of the image {name}, which is nowhere in {root}: add it")
    split = listed.get(file.stem) or split_of(file, root)
    return AnnotatedImage(path, _size_of(path), split, objects)


def _voc_object(node: ElementTree.Element) -> AnnotatedObject:
    box = node.find("bndbox")
    left, top, right, bottom = (
        float(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    ignored = node.findtext("difficult", "0").strip() == "1"
    return AnnotatedObject(
        node.findtext("name").strip(), (left, top, right - left, bottom - top), None, ignored
    )


def read_labelme(root: Path) -> list[AnnotatedImage]:
    """Read polygons and rectangles of LabelMe's JSON files, one an image.

    Raises:
        ConfigError: If an image is nowhere, or a shape has no corners.
    """
    return [image for path in iter_files(root, {".json"}) for image in _labelme_image(path, root)]


def _labelme_image(file: Path, root: Path) -> Iterator[AnnotatedImage]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        return
    name = str(content.get("imagePath") or file.stem).replace("\\", "/")
    candidates = [file.parent / name, file.parent / Path(name).name]
    candidates += [file.with_suffix(suffix) for suffix in sorted(IMAGES)]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ConfigError(f"{file} is of the image {name}, which is not beside it: add it")
    try:
        objects = [_labelme_object(shape) for shape in content["shapes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file} has a shape without a label or corners: {error!r}") from error
    yield AnnotatedImage(path.resolve(), _size_of(path), split_of(file, root), objects)


def _labelme_object(shape: Mapping[str, Any]) -> AnnotatedObject:
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if shape.get("shape_type") == "rectangle":
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    if len(points) < 3:
        raise ValueError(f"{shape['label']} with {len(points)} points")
    polygon = [coordinate for point in points for coordinate in point]
    return AnnotatedObject(str(shape["label"]), _box_around(polygon), polygon)


def read_json(path: Path) -> Any:
    """Content of a JSON file, None if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _box_around(polygon: list[float]) -> tuple[float, float, float, float]:
    columns, rows = polygon[::2], polygon[1::2]
    return min(columns), min(rows), max(columns) - min(columns), max(rows) - min(rows)


def _size_of(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error


READERS: dict[str, Callable[[Path], list[AnnotatedImage]]] = {
    "LabelMe": read_labelme,
    "Pascal VOC": read_voc,
    "YOLO": read_yolo,
}
