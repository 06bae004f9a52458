"""The bundled demo's scenes: handwritten digits on photographs, fully annotated.

Both come from scikit-learn's own files: ``load_digits`` (8 x 8 scans of handwriting) and
``load_sample_images`` (two photographs). Nothing is downloaded. The two splits share neither a
digit nor a pixel of background: training takes the first digits and the left of the photographs,
validation the last digits, which other people wrote, and the right of the photographs.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

CLASSES = tuple("0123456789")
SPLITS = ("training", "validation")
RECIPE_FILE = "recipe.json"

_DIGITS = {"training": slice(0, 1400), "validation": slice(1400, None)}
# Fractions of a photograph's width.
_PHOTO_COLUMNS = {"training": (0.0, 0.6), "validation": (0.6, 1.0)}
_DIGITS_PER_SCENE = (5, 9)
# Fractions of the image's side.
_DIGIT_HEIGHT = (0.16, 0.4)
# No digit may lose more of itself to the digits pasted after it.
_MIN_VISIBLE = 0.85
# Distance in RGB between a digit's colour and the mean colour of what it covers.
_MIN_CONTRAST = 150


def make_demo_scenes(
    root: str | Path,
    num_training: int = 400,
    num_validation: int = 100,
    image_size: int = 256,
    seed: int = 0,
) -> bool:
    """Write the demo's scenes to a folder, with COCO and ADE20K style annotations.

    The same arguments and package versions give the same bytes. ``root`` then holds::

        images/{training,validation}/0000.jpg       square RGB images
        annotations/instances_{training,validation}.json
                                                    COCO: tight boxes, RLE of the visible part
        annotations/{training,validation}/0000.png  label maps: 0 background, 1 + digit elsewhere
        recipe.json                                 what the scenes were made from

    A COCO category's id is its value in the label maps. The folder appears only when all of it is
    written; one made before by the same recipe is kept, one made by another recipe is replaced.

    Args:
        root: Folder to make. Its parents are made too.
        num_training: Number of training scenes. Default: 400.
        num_validation: Number of held-out scenes. Default: 100.
        image_size: Side of the images in pixels, at least 64. Default: 256.
        seed: Seed of everything random. Default: 0.

    Returns:
        Whether the scenes were made; False when ``root`` already held them.

    Raises:
        ValueError: If there is nothing to make or ``image_size`` is too small for the digits.
        FileExistsError: If ``root`` holds anything but demo scenes.
    """
    root = Path(root)
    if min(num_training, num_validation) < 1:
        raise ValueError(
            "each split needs at least one scene, "
            f"got num_training={num_training}, num_validation={num_validation}"
        )
    if image_size < 64:
        raise ValueError(f"image_size must be at least 64 pixels, got {image_size}")

    recipe = {
        "num_scenes": {"training": num_training, "validation": num_validation},
        "image_size": image_size,
        "seed": seed,
        "packages": {name: version(name) for name in ("numpy", "pillow", "scikit-learn")},
        "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    if _is_complete(root, recipe):
        return False
    if root.exists() and not (root / RECIPE_FILE).is_file() and any(root.iterdir()):
        raise FileExistsError(f"{root} holds something other than demo scenes; name another folder")

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as workspace:
        finished, outdated = Path(workspace, "finished"), Path(workspace, "outdated")
        for split in SPLITS:
            _write_split(finished, split, recipe["num_scenes"][split], image_size, seed)
        (finished / RECIPE_FILE).write_text(json.dumps(recipe, indent=1))
        if root.exists():
            root.rename(outdated)
        finished.rename(root)
    return True


def _is_complete(root: Path, recipe: dict) -> bool:
    recipe_file = root / RECIPE_FILE
    if not recipe_file.is_file() or json.loads(recipe_file.read_text()) != recipe:
        return False
    return all(
        (root / "annotations" / f"instances_{split}.json").is_file()
        and len(list((root / "images" / split).glob("*.jpg"))) == count
        and len(list((root / "annotations" / split).glob("*.png"))) == count
        for split, count in recipe["num_scenes"].items()
    )


def _write_split(root: Path, split: str, num_scenes: int, image_size: int, seed: int) -> None:
    image_dir, label_dir = root / "images" / split, root / "annotations" / split
    image_dir.mkdir(parents=True)
    label_dir.mkdir(parents=True)
    images, annotations = [], []
    for index, (image, owner, digits) in enumerate(_scenes(split, num_scenes, image_size, seed)):
        Image.fromarray(image).save(image_dir / f"{index:04d}.jpg", quality=95)
        categories = np.array([0] + [digit["category_id"] for digit in digits], dtype=np.uint8)
        Image.fromarray(categories[owner]).save(label_dir / f"{index:04d}.png")
        images.append(
            {
                "id": index,
                "file_name": f"{index:04d}.jpg",
                "height": image_size,
                "width": image_size,
            }
        )
        for number, digit in enumerate(digits, start=1):
            annotation = {"id": len(annotations) + 1, "image_id": index, **digit}
            annotations.append(annotation | _instance(owner == number))
    coco = {
        "info": {"description": "Handwritten digits on photographs, from scikit-learn"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1 + index, "name": name} for index, name in enumerate(CLASSES)],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))


def _instance(mask: np.ndarray) -> dict:
    """COCO's description of one mask, (H, W) of bool."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        "bbox": mask_utils.toBbox(rle).tolist(),
        "area": int(mask_utils.area(rle)),
        "iscrowd": 0,
    }


def _scenes(
    split: str, num_scenes: int, image_size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[dict]]]:
    """Yield each scene's image (H, W, 3), owner of each pixel (H, W) and digits.

    An owner is 0 for background, else one more than the digit's place in the list.
    """
    from sklearn.datasets import load_digits, load_sample_images  # Whoever has data does without.

    handwriting = load_digits()
    selected = np.arange(len(handwriting.images))[_DIGITS[split]]
    left, right = _PHOTO_COLUMNS[split]
    photos = [
        photo[:, int(left * photo.shape[1]) : int(right * photo.shape[1])]
        for photo in load_sample_images().images
    ]
    for index in range(num_scenes):
        # One generator a scene: a scene doesn't change with the number of scenes.
        rng = np.random.default_rng((seed, SPLITS.index(split), index))
        image = _background(photos[rng.integers(len(photos))], image_size, rng)
        owner = np.zeros((image_size, image_size), dtype=np.int64)
        areas, digits = [], []
        for source in rng.choice(selected, size=rng.integers(*_DIGITS_PER_SCENE), replace=False):
            coverage = _place(handwriting.images[source], owner, areas, rng)
            if coverage is None:
                continue
            _paint(image, coverage, rng)
            mask = coverage >= 0.5
            areas.append(mask.sum())
            owner[mask] = len(areas)
            # The index in load_digits says which handwriting this is.
            digits.append(
                {"category_id": 1 + int(handwriting.target[source]), "digit_index": int(source)}
            )
        yield image.round().astype(np.uint8), owner, digits


def _background(photo: np.ndarray, image_size: int, rng: np.random.Generator) -> np.ndarray:
    height, width = photo.shape[:2]
    side = rng.integers(min(height, width) // 3, min(height, width) + 1)
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    return np.asarray(crop.resize((image_size, image_size), Image.Resampling.BICUBIC), np.float64)


def _place(
    digit: np.ndarray, owner: np.ndarray, areas: list[int], rng: np.random.Generator
) -> np.ndarray | None:
    """How much a digit covers of each pixel, (H, W) in 0 .. 1, or None if it finds no place."""
    size = len(owner)
    low, high = np.log(_DIGIT_HEIGHT)
    height = round(size * np.exp(rng.uniform(low, high)))
    width = round(height * rng.uniform(0.8, 1.2))
    scan = Image.fromarray((digit * 15.9).astype(np.uint8))
    scan = scan.resize((width, height), Image.Resampling.BICUBIC)
    scan = scan.rotate(rng.uniform(-5, 5), Image.Resampling.BICUBIC)
    # Pen pressure to ink: steep enough for an edge of a pixel or two at any size.
    ink = np.clip(0.5 + (np.asarray(scan) / 255 - 0.5) * height / 12, 0, 1)
    for _ in range(10):
        top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
        coverage = np.zeros(owner.shape)
        coverage[top : top + height, left : left + width] = ink
        visible = np.bincount(owner[coverage < 0.5], minlength=len(areas) + 1)[1:]
        if np.all(visible >= _MIN_VISIBLE * np.array(areas)):
            return coverage
    return None


def _paint(image: np.ndarray, coverage: np.ndarray, rng: np.random.Generator) -> None:
    """Paint a digit onto an image, in place, in a random colour that stands out."""
    behind = image[coverage >= 0.5].mean(axis=0)
    color = rng.uniform(0, 255, size=3)
    while np.linalg.norm(color - behind) < _MIN_CONTRAST:
        color = rng.uniform(0, 255, size=3)
    image += coverage[..., None] * (color - image)
