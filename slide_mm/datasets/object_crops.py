"""Objects cut out of detection data, for classifiers."""

import json
import tempfile
from pathlib import Path
from typing import Any

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
        ValueError: If the annotations are not of COCO's form, or a name leads out of a folder.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it or name another folder")
    coco = json.loads(Path(ann_file).read_text(encoding="utf-8"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as workspace:
        finished = Path(workspace, "finished")
        try:
            number = _cut_all(coco, Path(image_dir), finished)
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{ann_file} is not of COCO's form: {error!r}") from error
        finished.rename(out)
    return number


def _cut_all(coco: dict[str, Any], image_dir: Path, out: Path) -> int:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    files = {image["id"]: _join(image_dir, image["file_name"]) for image in coco["images"]}
    for name in names.values():
        _join(out, name, folders=False).mkdir(parents=True, exist_ok=True)
    for annotation in coco["annotations"]:
        if not min(annotation["bbox"][2:]) > 0:
            raise ValueError(f"annotation {annotation['id']} has a bbox without area")
        with Image.open(files[annotation["image_id"]]) as image:
            crop = image.convert("RGB").crop(_crop_box(annotation["bbox"], image.size))
        folder = out / names[annotation["category_id"]]
        crop.save(_join(folder, f"{annotation['id']}.jpg", folders=False), quality=95)
    return len(coco["annotations"])


def _join(folder: Path, name: str, folders: bool = True) -> Path:
    """A path below a folder, from a name that others wrote; it may have folders of its own.

    Raises:
        ValueError: If the name leads out of the folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"the name {name!r} leads out of {folder}: change it")
    if not folders and len(path.parts) > 1:
        raise ValueError(f"the name {name!r} is no name of a file or folder: change it")
    return folder / path


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
