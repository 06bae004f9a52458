"""Annotation files in COCO's format, made up."""

import json
from pathlib import Path

import numpy as np


def make_coco(rng, num_images=6, num_annotations=20, num_categories=3):
    """COCO's dict of boxes and polygons at random places; half of the masks are run lengths."""
    images = []
    for index in range(num_images):
        width, height = (int(side) for side in rng.integers(40, 120, 2))
        name = f"{index:04d}.jpg"
        images.append({"id": 10 + index, "file_name": name, "width": width, "height": height})
    annotations = []
    for index in range(num_annotations):
        image = images[int(rng.integers(num_images))]
        left, top, width, height = (int(x) for x in rng.integers([0, 0, 4, 4], [30, 30, 10, 10]))
        right, bottom = left + width, top + height
        polygon = [left, top, right, top, right, bottom, left, bottom]
        annotations.append(
            {
                "id": 1 + index,
                "image_id": image["id"],
                "category_id": 3 * int(rng.integers(num_categories)) + 1,
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
                "segmentation": [polygon] if rng.integers(2) else _run_lengths(image, left, width),
            }
        )
    categories = [{"id": 3 * i + 1, "name": f"class {i}"} for i in range(num_categories)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _run_lengths(image, left, width):
    height = image["height"]
    counts = [left * height, width * height, (image["width"] - left - width) * height]
    return {"size": [height, image["width"]], "counts": counts}


def write_large_coco(path, num_images=118_000, num_annotations=860_000, seed=0):
    """Write a file of COCO's size, 80 classes with masks of 8 to 80 numbers, in seconds."""
    rng = np.random.default_rng(seed)
    shapes = []
    for _ in range(2000):
        size = rng.integers(4, 41)
        corners = rng.uniform([0, 0], [400, 300], 2)
        sides = rng.uniform(2, 80, 2)
        points = (corners + rng.random((size, 2)) * sides).round(2)
        box = [*corners.round(2).tolist(), *sides.round(2).tolist()]
        shapes.append(
            f'"segmentation": {json.dumps([points.ravel().tolist()])}, "bbox": {json.dumps(box)}, '
            f'"area": {sides.prod() / 2:.4f}, "iscrowd": 0'
        )
    images = [
        f'{{"id": {index}, "file_name": "{index:012d}.jpg", "width": 640, "height": 480}}'
        for index in range(num_images)
    ]
    choices = rng.integers([num_images, 80, len(shapes)], size=(num_annotations, 3)).tolist()
    annotations = [
        f'{{"id": {1 + index}, "image_id": {image}, "category_id": {1 + label}, {shapes[shape]}}}'
        for index, (image, label, shape) in enumerate(choices)
    ]
    categories = json.dumps([{"id": 1 + label, "name": f"class {label}"} for label in range(80)])
    with Path(path).open("w") as file:
        file.write(f'{{"categories": {categories}, "images": [{", ".join(images)}], ')
        file.write(f'"annotations": [{", ".join(annotations)}]}}')
