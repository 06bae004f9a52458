"""What people's folders have in common: images, and names that say which split is which."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from slide_mm.engine.reporting import ConfigError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
VALIDATION_SHARE = 0.2
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NAME_FILES = ("classes.txt", "names.txt", "labels.txt", "obj.names", "labelmap.txt")


def iter_files(root: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Yield all files below a folder that end so, hidden ones left out, in order."""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            yield path


def split_of(path: Path, root: Path) -> str | None:
    """``'train'``, ``'val'`` or ``'test'``, if the path's names below ``root`` say one of them."""
    words = re.split(r"[^a-z]+", path.relative_to(root).as_posix().lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def read_names(root: Path) -> list[str] | None:
    """Class names, one a line, of a file in the folder; None if there is none."""
    for name in _NAME_FILES:
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return None


def draw_validation(with_objects: Sequence, without: Sequence, seed: int) -> tuple[list, list]:
    """Divide items into training and validation, both with some that have objects.

    Args:
        with_objects: Items that have objects.
        without: Items that have none.
        seed: Of the drawing; the same one gives the same splits.

    Raises:
        ConfigError: If there are fewer than two items with objects.
    """
    if len(with_objects) < 2:
        raise ConfigError(
            f"{len(with_objects)} images have objects: give at least 2, one to train on and one "
            "to validate with"
        )
    training, validation = [], []
    drawing = random.Random(seed)
    for items, least in ((with_objects, 1), (without, 0)):
        items = drawing.sample(list(items), len(items))
        number = max(least, round(VALIDATION_SHARE * len(items)))
        validation += items[:number]
        training += items[number:]
    return training, validation
