"""What people's folders have in common: images, and names that say what belongs where."""

import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import yaml

from slide_mm.engine.reporting import ConfigError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
VALIDATION_SHARE = 0.2
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NAME_FILES = ("classes.txt", "class_names.txt", "names.txt", "labels.txt", "labelmap.txt")


def iter_files(root: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Yield all files below a folder that end so, in order.

    Links to folders are followed; what is hidden is left out.
    """
    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(folder) in seen:  # A link to a folder around it.
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    for path in sorted(found):
        if path.suffix.lower() in suffixes and path.is_file():
            yield path


def count_files(root: Path) -> str:
    """Say how many files of which ends a folder has, such as ``24 .jpg, 3 .txt``."""
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    counts = Counter(path.suffix.lower() or "without an end" for path in paths)
    return ", ".join(f"{number} {end}" for end, number in counts.most_common(5)) or "nothing"


def words_of(name: str) -> list[str]:
    """The words of a file's or folder's name: ``['train', 'images']`` for ``TrainImages_2``.

    ``trainannot`` and the like are two.
    """
    name = re.sub(r"(?i)(?<=[a-z])(annot|label|mask|image)", r"_\1", name)
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def split_of(path: Path, root: Path) -> str | None:
    """``'train'``, ``'val'`` or ``'test'``: what the innermost name below ``root`` says that does.

    Images may be of trains and tests: hand over their folder.
    """
    for part in reversed(path.relative_to(root).parts):
        found = {_SPLITS[word] for word in words_of(part) if word in _SPLITS}
        if len(found) == 1:
            return found.pop()
    return None


def read_lists(root: Path, folder: str) -> dict[str, str]:
    """Splits by the images' names without ends, from text files called train, val or test.

    Args:
        root: Where to look.
        folder: Name of the folder whose lists count, if there are any in such a one.
    """
    files = [x for x in iter_files(root, {".txt"}) if x.stem.lower() in _SPLITS]
    files = [x for x in files if x.parent.name == folder] or files
    splits: dict[str, set[str]] = {}
    for file in files:
        for line in read_lines(file):
            name = PurePosixPath(line.replace("\\", "/")).name
            splits.setdefault(stem_of(name), set()).add(_SPLITS[file.stem.lower()])
    return {name: found.pop() for name, found in splits.items() if len(found) == 1}


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that aren't empty, without spaces around them.

    Raises:
        ConfigError: If it is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def stem_of(name: str) -> str:
    """A name by which files are told to belong together: without an image's end, in one form."""
    stem, suffix = os.path.splitext(name)
    return normalize(stem if suffix.lower() in IMAGES else name)


def normalize(name: str) -> str:
    """A name in lower case, its accents as most systems write them."""
    return unicodedata.normalize("NFC", name).casefold()


def read_names(root: Path) -> dict[int, str]:
    """Class names by number: lines of a text file of names, or ``names`` in a YAML file.

    Returns:
        Nothing, if there is no such file.

    Raises:
        ConfigError: If two files have different names.
    """
    found: dict[Path, dict[int, str]] = {}
    for path in iter_files(root, {".txt", ".names", ".yaml", ".yml"}):
        names = _names_in(path)
        if names:
            found[path] = names
    paths = list(found)
    for other in paths[1:]:
        if found[other] != found[paths[0]]:
            raise ConfigError(f"{paths[0]} and {other} have different names: leave one")
    return found[paths[0]] if found else {}


def _names_in(path: Path) -> dict[int, str]:
    if path.suffix.lower() in (".yaml", ".yml"):
        names = read_yaml(path).get("names")
        names = dict(enumerate(names)) if isinstance(names, list) else names
        if isinstance(names, dict) and all(str(number).isdecimal() for number in names):
            return {int(number): str(name) for number, name in names.items()}
        return {}
    if path.name.lower() in _NAME_FILES or path.suffix == ".names":
        return dict(enumerate(read_lines(path)))
    return {}


def read_yaml(path: Path) -> dict:
    """Content of a YAML file, nothing if it is none with keys."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def likeness(first: Path, second: Path, root: Path) -> tuple[int, int]:
    """How much alike the folders of two files are: in names that both have, then in few others."""
    counts = [Counter(path.relative_to(root).parts[:-1]) for path in (first, second)]
    shared = sum((counts[0] & counts[1]).values())
    return shared, 2 * shared - sum(sum(count.values()) for count in counts)


class ImageFinder:
    """Finds the images that annotation files are of: of their name, in folders like theirs.

    Args:
        root: Folder of all.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = list(iter_files(root, IMAGES))
        self._by_stem: dict[str, list[Path]] = {}
        for path in self.images:
            self._by_stem.setdefault(stem_of(path.name), []).append(path)
        self._taken: dict[Path, Path] = {}

    def find(self, file: Path, name: str = "") -> Path | None:
        """The image of an annotation file, None if there is none.

        Args:
            file: The file.
            name: What it calls its image.

        Raises:
            ConfigError: If two images may be meant, or another file has the image.
        """
        name = PurePosixPath(name.replace("\\", "/")).name
        candidates = self._by_stem.get(stem_of(file.stem)) or self._by_stem.get(stem_of(name), [])
        if not candidates:
            return None

        def rank(path: Path) -> tuple[tuple[int, int], bool]:
            return likeness(path, file, self.root), path.name == name

        path, *others = sorted(candidates, key=rank, reverse=True)
        if others and rank(others[0]) == rank(path):
            raise ConfigError(f"{file} may be of {path} or {others[0]}: leave one")
        if path in self._taken:
            raise ConfigError(
                f"{path} is the image of {self._taken[path]}, and of {file} too: leave one, or add "
                "the image of the other"
            )
        self._taken[path] = file
        return path


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
