"""LabelMe's annotations: a JSON file an image, with polygons, rectangles, circles and masks."""

import base64
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.folders import ImageFinder, iter_files, split_of
from slide_mm.new_config.objects import (
    AnnotatedImage,
    AnnotatedObject,
    of_polygons,
    read_json,
    size_of,
)

_CORNERS_OF_CIRCLES = 32
_NO_OBJECTS = ("point", "points", "line", "linestrip")


def read_labelme(root: Path) -> list[AnnotatedImage]:
    """Read objects; shapes of one class and ``group_id`` are one, points and lines are left out.

    Splits are names of folders.

    Raises:
        ConfigError: If an image is nowhere, or a shape has no corners.
    """
    images, finder = [], None
    for file in iter_files(root, {".json"}):
        content = read_json(file)
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            finder = finder or ImageFinder(root)
            images.append(_read_image(file, content, root, finder))
    return images


def _read_image(
    file: Path, content: Mapping[str, Any], root: Path, finder: ImageFinder
) -> AnnotatedImage:
    name = str(content.get("imagePath") or file.stem)
    path = finder.find(file, name)
    if path is None:
        raise ConfigError(f"{file} is of the image {name}, which is nowhere in {root}: add it")
    size = size_of(path)
    try:
        shapes = [x for x in content["shapes"] if x.get("shape_type") not in _NO_OBJECTS]
        objects = _read_objects(shapes, size)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"{file} has a shape without a label or corners: {error!r}") from error
    split = split_of(file.parent, root) or split_of(path.parent, root)
    return AnnotatedImage(path, size, split, objects, len(content["shapes"]) - len(shapes))


def _read_objects(
    shapes: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> list[AnnotatedObject]:
    groups: dict[Any, list[list[float]]] = {}
    masks = []
    for index, shape in enumerate(shapes):
        if shape.get("shape_type") == "mask":
            masks.append(_read_mask(shape, size))
            continue
        group = shape.get("group_id")
        key = (str(shape["label"]), index if group is None else f"group {group}")
        groups.setdefault(key, []).append(_read_polygon(shape))
    return [of_polygons(name, polygons) for (name, _), polygons in groups.items()] + masks


def _read_polygon(shape: Mapping[str, Any]) -> list[float]:
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if shape.get("shape_type") == "circle":
        (x, y), edge = points
        radius, steps = math.dist((x, y), edge), range(_CORNERS_OF_CIRCLES)
        angles = [2 * math.pi * step / _CORNERS_OF_CIRCLES for step in steps]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    elif shape.get("shape_type") == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    if len(points) < 3:
        raise ValueError(f"{shape['label']} with {len(points)} points")
    return [coordinate for point in points for coordinate in point]


def _read_mask(shape: Mapping[str, Any], size: tuple[int, int]) -> AnnotatedObject:
    """A picture of the object in its box, for COCO's run lengths."""
    left, top = (round(float(coordinate)) for coordinate in shape["points"][0])
    with Image.open(BytesIO(base64.b64decode(shape["mask"]))) as image:
        part = np.asarray(image) > 0
    whole = np.zeros(size[::-1], np.uint8, order="F")
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    encoded = run_lengths.encode(whole)
    box, area = run_lengths.toBbox(encoded).tolist(), float(run_lengths.area(encoded))
    encoded["counts"] = encoded["counts"].decode("ascii")
    return AnnotatedObject(str(shape["label"]), tuple(box), encoded, area)
