"""Images and their objects, as the readers of other formats than COCO's hand them over."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from slide_mm.engine.reporting import ConfigError

# Values of EXIF's orientation that lay an image on its side.
_LYING = (5, 6, 7, 8)


@dataclass
class AnnotatedObject:
    """One object.

    Attributes:
        name: Of its class.
        box: Left, top, width and height, in pixels.
        mask: COCO's ``segmentation``: polygons of x and y in turn, in pixels, or run lengths; None
            for a box alone.
        area: Of the mask or the box, in pixels.
        ignored: Whether it is neither to be learnt nor to be found.
        number: Of its class, where the format has numbers; classes are put in their order.
    """

    name: str
    box: tuple[float, float, float, float]
    mask: list[list[float]] | dict[str, Any] | None = None
    area: float = 0.0
    ignored: bool = False
    number: int = 0

    def __post_init__(self) -> None:
        self.area = self.area or self.box[2] * self.box[3]


@dataclass
class AnnotatedImage:
    """An image and its objects.

    Attributes:
        path: Its file.
        size: Width and height.
        split: ``'train'``, ``'val'``, ``'test'`` or None, if nothing says it.
        objects: All that is annotated.
        left_out: Number of annotations that are no objects, such as points.
    """

    path: Path
    size: tuple[int, int]
    split: str | None
    objects: list[AnnotatedObject] = field(default_factory=list)
    left_out: int = 0


def of_polygons(name: str, polygons: list[list[float]], number: int = 0) -> AnnotatedObject:
    """An object of one or several polygons; see :class:`AnnotatedObject`."""
    area = sum(map(area_of, polygons))
    return AnnotatedObject(name, box_around(polygons), polygons, area, number=number)


def box_around(polygons: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Left, top, width and height of the box around polygons."""
    columns = [x for polygon in polygons for x in polygon[::2]]
    rows = [y for polygon in polygons for y in polygon[1::2]]
    return min(columns), min(rows), max(columns) - min(columns), max(rows) - min(rows)


def area_of(polygon: Sequence[float]) -> float:
    """By the sum of the signed areas below the edges."""
    columns, rows = np.array(polygon[::2]), np.array(polygon[1::2])
    return float(abs(columns @ np.roll(rows, -1) - rows @ np.roll(columns, -1)) / 2)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is loaded: upright, where its camera was turned.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            lying = image.getexif().get(ExifTags.Base.Orientation) in _LYING
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error
    return (height, width) if lying else (width, height)


def read_json(path: Path) -> Any:
    """Content of a JSON file, None if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return None
