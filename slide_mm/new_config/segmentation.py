"""Folders of images and label maps: which belong together, and what the labels are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.folders import (
    IMAGES,
    count_files,
    draw_validation,
    iter_files,
    likeness,
    read_lists,
    read_names,
    split_of,
    stem_of,
    words_of,
)

IGNORED = 255
_LABEL_WORDS = ("label", "mask", "annot", "segmentation")
_IMAGE_WORDS = ("image", "images", "img", "imgs", "photos", "rgb", "jpeg")


@dataclass(frozen=True)
class Split:
    """Images of one split and their label maps.

    Attributes:
        images: Folder of the images.
        labels: Folder of the label maps.
        names: Those of the images in their folder, without ends.
        image_suffix: What the images' names end in.
        label_suffix: What takes its place in names of label maps.
        listed: File with the names of those that belong to the split; None for all in the folder.
    """

    images: Path
    labels: Path
    names: tuple[str, ...]
    image_suffix: str
    label_suffix: str
    listed: Path | None = None


@dataclass(frozen=True)
class SegmentationData:
    """What a folder holds.

    Attributes:
        classes: Names, by the number in label maps.
        splits: By ``'train'`` and ``'val'``, maybe ``'test'``.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]


def find_segmentation(root: Path, seed: int) -> SegmentationData:
    """Find images and label maps in a folder.

    Args:
        root: The folder. A file ``classes.txt`` in it names the classes, one a line; without one
            they are called by their numbers.
        seed: Of the drawing of validation images, where nothing says which they are.

    Raises:
        ConfigError: If there are none, or an image or a label map lacks the other.
    """
    images, labels = {}, {}
    for path in iter_files(root, IMAGES):
        folders = labels if _is_of_labels(path.parent, root) else images
        folders.setdefault(path.parent, []).append(path)
    if not images or not labels:
        found = ", ".join(str(folder.relative_to(root)) for folder in (*images, *labels))
        raise ConfigError(
            f"{root} has no images with label maps: looked for folders of images, and others with "
            f"{', '.join(_LABEL_WORDS)} or gt in their names, found {found or count_files(root)}"
        )
    listed = read_lists(root, "Segmentation")
    pairs = _merge(_pair(folder, files, labels, root, listed) for folder, files in images.items())
    splits = _choose_splits(pairs, root, seed, listed)
    return SegmentationData(_find_classes(root, splits.values()), splits)


def _is_of_labels(folder: Path, root: Path) -> bool:
    """Whether the innermost name that says images or labels says labels."""
    for part in reversed(folder.relative_to(root).parts):
        words = words_of(part)
        if "gt" in words or any(word in x for x in words for word in _LABEL_WORDS):
            return True
        if set(words) & set(_IMAGE_WORDS):
            return False
    return False


def _pair(
    folder: Path,
    files: Sequence[Path],
    labels: Mapping[Path, Sequence[Path]],
    root: Path,
    listed: Mapping[str, str],
) -> Split:
    """Images of a folder, with the label maps in the folder that is most like it."""
    suffixes = sorted({file.suffix for file in files})
    if len(suffixes) > 1:
        raise ConfigError(f"{folder} has images that end in {' and '.join(suffixes)}: make it one")
    chosen = files
    if split_of(folder, root) is None:
        chosen = [file for file in files if stem_of(file.name) in listed] or files
    name = chosen[0].stem
    candidates = [x for x in labels if split_of(x, root) in (None, split_of(folder, root))]
    fitting = {x: _suffix_of(name, labels[x]) for x in candidates}
    fitting = {x: suffix for x, suffix in fitting.items() if suffix}
    if not fitting:
        looked = " and ".join(map(str, candidates)) or "folders of labels of the same split"
        raise ConfigError(
            f"{chosen[0]} has no label map: looked for {name} with another end in {looked}"
        )

    def rank(x: Path) -> tuple[tuple[int, int], bool]:
        # Pascal VOC has maps of objects, too, and LabelMe pictures of both.
        words = words_of(x.name)
        is_of_classes = "class" in words and "visualization" not in words
        return likeness(x / name, chosen[0], root), is_of_classes

    best, *others = sorted(fitting, key=rank, reverse=True)
    if others and rank(others[0]) == rank(best):
        raise ConfigError(
            f"label maps of {folder} may be those in {best} or {others[0]}: leave one"
        )
    for file in chosen:
        path = best / f"{file.stem}{fitting[best]}"
        if not path.is_file():
            raise ConfigError(f"{file} has no label map: {path} does not exist")
    return Split(folder, best, tuple(x.stem for x in chosen), suffixes[0], fitting[best])


def _suffix_of(name: str, files: Iterable[Path]) -> str | None:
    """What follows an image's name in that of its label map: the least there is."""
    found = [path.name[len(name) :] for path in files if path.name.startswith(name)]
    return min((x for x in found if not x[0].isalnum()), key=len, default=None)


def _merge(pairs: Iterable[Split]) -> list[Split]:
    """Put folders that lie alike in one of images and one of labels together."""
    merged: dict[tuple[Path, ...], Split] = {}
    for pair in pairs:
        images, labels, inner = pair.images, pair.labels, Path()
        while images.name == labels.name and split_of(Path(images.name), Path()) is None:
            inner = images.name / inner
            images, labels = images.parent, labels.parent
        names = tuple((inner / name).as_posix() for name in pair.names)
        earlier = merged.get((images, labels))
        endings = (pair.image_suffix, pair.label_suffix)
        if earlier and (earlier.image_suffix, earlier.label_suffix) != endings:
            raise ConfigError(f"{images} has images or label maps of several endings: make it one")
        names = (earlier.names if earlier else ()) + names
        merged[images, labels] = Split(images, labels, names, *endings)
    return list(merged.values())


def _choose_splits(
    pairs: Sequence[Split], root: Path, seed: int, listed: Mapping[str, str]
) -> dict[str, Split]:
    found: dict[str | None, Split] = {}
    for pair in pairs:
        split = split_of(pair.images, root)
        if split in found:
            names = f"{found[split].images.relative_to(root)} and {pair.images.relative_to(root)}"
            raise ConfigError(f"{root} has images of {split or 'no split'} in {names}: leave one")
        found[split] = pair
    train = found.get("train") or found.get(None)
    held_out = [found[split] for split in ("val", "test") if split in found]
    if not train:
        raise ConfigError(f"{root} has no images to train on: say train in a folder's name")
    if held_out:
        splits = dict(zip(("train", "val", "test"), (train, *held_out), strict=False))
        # All that is below a folder of images is taken for one.
        mixed = {name for name, split in splits.items() if split.images in split.labels.parents}
        return {x: _list(root, x, split) if x in mixed else split for x, split in splits.items()}
    names = {
        x: [n for n in train.names if listed.get(stem_of(Path(n).name)) == x]
        for x in ("train", "val", "test")
    }
    if not names["train"] or not names["val"]:
        names = dict(zip(("train", "val"), draw_validation(train.names, [], seed), strict=True))
    return {
        x: _list(root, x, replace(train, names=tuple(part))) for x, part in names.items() if part
    }


def _list(root: Path, name: str, split: Split) -> Split:
    """Write a list of a split's images."""
    path = root / f"listed_{name}.txt"
    with write_atomically(path) as file:
        file.write_text("\n".join(sorted(split.names)) + "\n", encoding="utf-8")
    return replace(split, listed=path)


def _find_classes(root: Path, splits: Iterable[Split]) -> tuple[str, ...]:
    names, numbers = read_names(root), set()
    for split in splits:
        for name in split.names:
            numbers |= _labels_of(split.labels / f"{name}{split.label_suffix}")
    numbers -= {IGNORED}
    if len(numbers) < 2:
        raise ConfigError(
            f"the label maps of {root} have the number {next(iter(numbers), None)} alone, besides "
            f"{IGNORED}, which is ignored: there is nothing to tell apart; number classes from 0"
        )
    if not names:
        if max(numbers) >= 2 * len(numbers):
            raise ConfigError(
                f"the label maps of {root} have {len(numbers)} numbers, up to {max(numbers)}: "
                "number the classes from 0 without gaps, or name all of them in classes.txt"
            )
        return tuple(f"class {number}" for number in range(max(numbers) + 1))
    if max(numbers) > max(names):
        raise ConfigError(
            f"the label maps of {root} have the number {max(numbers)}, and its file of names "
            f"{len(names)} names, for 0 to {max(names)}: add the others"
        )
    return tuple(names.get(number, f"class {number}") for number in range(max(names) + 1))


def _labels_of(path: Path) -> set[int]:
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise ConfigError(f"label map {path} is a JPEG, which changes numbers: give PNG files")
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except OSError as error:
        raise ConfigError(f"label map {path} cannot be read: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "bui" or values.max(initial=0) > 255:
        raise ConfigError(
            f"label map {path} has shape {values.shape}, type {values.dtype} and numbers up to "
            f"{values.max(initial=0)}: give one channel of numbers of classes, below 256"
        )
    return set(np.unique(values).tolist())
