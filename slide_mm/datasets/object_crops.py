"""Objects cut out of detection data, for classifiers."""

import json
import tempfile
from pathlib import Path

from PIL import Image

# Side of a crop over the longer side of its box.
_CONTEXT = 1.5


def crop_objects(ann_file: str | Path, image_dir: str | Path, out: str | Path) -> int:
    """Cut every annotated object out of its image, into one folder a class.

    A crop is square and half as large again as its box, moved or cut where the image ends.
    Classes without objects get a folder too, so that all splits of a data set number their classes
    alike. The folder appears only when all of it is written.

    Args:
        ann_file: Annotations in COCO's format.
        image_dir: Folder of the images that they name.
        out: Folder to make: ``out/<category>/<annotation id>.jpg``.

    Returns:
        Number of crops.

    Raises:
        FileExistsError: If ``out`` exists.
        FileNotFoundError: If the annotations or an image don't exist.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it or name another folder")
    coco = json.loads(Path(ann_file).read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    files = {image["id"]: Path(image_dir, image["file_name"]) for image in coco["images"]}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as workspace:
        finished = Path(workspace, "finished")
        for name in names.values():
            Path(finished, name).mkdir(parents=True)
        for annotation in coco["annotations"]:
            with Image.open(files[annotation["image_id"]]) as image:
                crop = image.convert("RGB").crop(_crop_box(annotation["bbox"], image.size))
            name = names[annotation["category_id"]]
            crop.save(Path(finished, name, f"{annotation['id']}.jpg"), quality=95)
        finished.rename(out)
    return len(coco["annotations"])


def _crop_box(bbox: list[float], image_size: tuple[int, int]) -> tuple[int, ...]:
    """Left, top, right and bottom of a crop, from COCO's left, top, width and height."""
    side = round(_CONTEXT * max(bbox[2:]))
    starts, ends = [], []
    for start, extent, limit in zip(bbox[:2], bbox[2:], image_size, strict=True):
        first = round(start + extent / 2 - side / 2)
        first = max(0, min(first, limit - side))
        starts.append(first)
        ends.append(min(first + side, limit))
    return (*starts, *ends)
