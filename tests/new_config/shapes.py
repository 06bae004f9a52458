"""Pictures of discs, squares, triangles and crosses on uneven ground, annotated as COCO's."""

import json
import math

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("disc", "square", "triangle", "cross")
_CROSS = [(1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3)]


def outline(kind, generator):
    """Corners of a shape of radius 1, turned at random."""
    if kind == "cross":
        corners = [*_CROSS, *((-x, -y) for x, y in _CROSS)]
        corners = [(x / math.sqrt(10), y / math.sqrt(10)) for x, y in corners]
    else:
        count = {"disc": 32, "square": 4, "triangle": 3}[kind]
        angles = [2 * math.pi * step / count for step in range(count)]
        corners = [(math.cos(angle), math.sin(angle)) for angle in angles]
    turn = generator.uniform(0, 2 * math.pi)
    sine, cosine = math.sin(turn), math.cos(turn)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in corners]


def draw_image(generator, size):
    """An image and its objects: numbers of classes and polygons."""
    ground = Image.fromarray(generator.integers(60, 200, (6, 6, 3), np.uint8))
    noise = generator.normal(0, 12, (size, size, 3))
    pixels = np.asarray(ground.resize((size, size), Image.Resampling.BICUBIC)) + noise
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    brush, objects, taken = ImageDraw.Draw(image), [], []
    for _ in range(generator.integers(2, 7)):
        radius = generator.uniform(size / 16, size / 6)
        x, y = generator.uniform(radius, size - radius, 2)
        if any(math.dist((x, y), other[:2]) < radius + other[2] for other in taken):
            continue
        taken.append((x, y, radius))
        number = int(generator.integers(len(CLASSES)))
        corners = outline(CLASSES[number], generator)
        corners = [(x + radius * column, y + radius * row) for column, row in corners]
        brush.polygon(corners, fill=tuple(generator.integers(0, 256, 3).tolist()))
        objects.append((number, [value for corner in corners for value in corner]))
    return image, objects


def make_shapes(root, num_images, size=256, seed=0):
    """Write images into ``root/images`` and the annotations of all of them beside it."""
    generator = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(num_images):
        image, objects = draw_image(generator, size)
        name = f"{number:04}.jpg"
        image.save(root / "images" / name, quality=90)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for label, polygon in objects:
            columns, rows = polygon[::2], polygon[1::2]
            box = [min(columns), min(rows), max(columns) - min(columns), max(rows) - min(rows)]
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": number, "category_id": label},
                    **{"bbox": box, "segmentation": [polygon], "iscrowd": 0},
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES)],
    }
    (root / "annotations.json").write_text(json.dumps(content))
