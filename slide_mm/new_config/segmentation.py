"""Folders of images and label maps: which belong together, and what the labels are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.reporting import ConfigError
from slide_mm.new_config.folders import (
    IMAGES,
    draw_validation,
    iter_files,
    read_names,
    split_of,
)

IGNORED = 255
_LABEL_WORDS = ("label", "mask", "annotation", "segmentation", "gt")


@dataclass(frozen=True)
class Split:
    """Images of one split and their label maps.

    Attributes:
        images: Folder of the images.
        labels: Folder of the label maps.
        listed: File with the names without endings of those that belong to the split; None for
            all in the folder.
        num_images: Their number.
    """

    images: Path
    labels: Path
    listed: Path | None
    num_images: int


@dataclass(frozen=True)
class SegmentationData:
    """What a folder holds.

    Attributes:
        classes: Names, by the number in label maps.
        splits: By ``'train'`` and ``'val'``.
        image_suffix: What the images' names end in.
        label_suffix: What takes its place in names of label maps.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    image_suffix: str
    label_suffix: str


def find_segmentation(root: Path, seed: int) -> SegmentationData:
    """Find images and label maps in a folder.

    Args:
        root: The folder. A file ``classes.txt`` in it names the classes, one a line; without one
            they are called by their numbers.
        seed: Of the drawing of validation images, where nothing says which they are.

    Raises:
        ConfigError: If there are none, or an image or a label map lacks the other.
    """
    folders: dict[Path, list[Path]] = {}
    for path in iter_files(root, IMAGES):
        folders.setdefault(path.parent, []).append(path)
    labels = [folder for folder in folders if _has_labels(folder, root)]
    pairs = [
        _pair(images, folders[images], labels, root) for images in folders if images not in labels
    ]
    if not pairs:
        found = ", ".join(str(folder.relative_to(root)) for folder in folders) or "no images"
        raise ConfigError(
            f"{root} has no images with label maps: looked for folders of images beside folders "
            f"with {', '.join(_LABEL_WORDS)} in their names, found {found}"
        )
    suffixes = {(image_suffix, label_suffix) for *_, image_suffix, label_suffix in pairs}
    if len(suffixes) > 1:
        endings = " and ".join(f"{image} with {label}" for image, label in sorted(suffixes))
        raise ConfigError(f"{root} has images that end in {endings}: give all one ending")
    splits = _split([pair[:2] for pair in pairs], folders, root, seed, *next(iter(suffixes)))
    return SegmentationData(_classes(root, labels, folders), splits, *next(iter(suffixes)))


def _has_labels(folder: Path, root: Path) -> bool:
    name = folder.relative_to(root).as_posix().lower()
    return any(word in name for word in _LABEL_WORDS)


def _pair(
    images: Path, files: Sequence[Path], labels: Sequence[Path], root: Path
) -> tuple[Path, Path, str, str]:
    """A folder of images, that of its label maps, and what their names end in."""
    of_split = [x for x in labels if split_of(x, root) == split_of(images, root)]
    for folder in of_split:
        names = sorted(path.name for path in folder.iterdir())
        found = [name for name in names if name.startswith(files[0].stem)]
        if found:
            image_suffix = files[0].suffix
            label_suffix = min(found, key=len)[len(files[0].stem) :]
            for file in files:
                name = file.name.removesuffix(image_suffix) + label_suffix
                if not (folder / name).is_file():
                    raise ConfigError(f"{file} has no label map: {folder / name} does not exist")
            return images, folder, image_suffix, label_suffix
    raise ConfigError(
        f"{files[0]} has no label map: looked for a file of the same name in "
        f"{' and '.join(map(str, of_split)) or 'folders of labels, of which there are none'}"
    )


def _split(
    pairs: Sequence[tuple[Path, Path]],
    folders: Mapping[Path, Sequence[Path]],
    root: Path,
    seed: int,
    image_suffix: str,
    label_suffix: str,
) -> dict[str, Split]:
    by_split: dict[str | None, list[tuple[Path, Path]]] = {}
    for pair in pairs:
        by_split.setdefault(split_of(pair[0], root), []).append(pair)
    for split, several in by_split.items():
        if len(several) > 1:
            names = " and ".join(str(images.relative_to(root)) for images, _ in several[:2])
            raise ConfigError(f"{root} has images of {split or 'no split'} in {names}: leave one")
    held_out = by_split.get("val") or by_split.get("test")
    if "train" in by_split and held_out:
        return {
            name: Split(images, labels, None, len(folders[images]))
            for name, ((images, labels),) in {"train": by_split["train"], "val": held_out}.items()
        }
    if len(by_split) > 1:
        raise ConfigError(f"{root} has no images to train on: say train in a folder's name")
    ((images, labels),) = next(iter(by_split.values()))
    names = [path.name.removesuffix(image_suffix) for path in folders[images]]
    splits = {}
    for name, part in zip(("train", "val"), draw_validation(names, [], seed), strict=True):
        path = root / f"images_{name}.txt"
        with write_atomically(path) as file:
            file.write_text("\n".join(sorted(part)) + "\n", encoding="utf-8")
        splits[name] = Split(images, labels, path, len(part))
    return splits


def _classes(
    root: Path, labels: Sequence[Path], folders: Mapping[Path, Sequence[Path]]
) -> tuple[str, ...]:
    names, numbers = read_names(root), set()
    for path in (path for folder in labels for path in folders[folder]):
        numbers |= _labels_of(path)
    numbers -= {IGNORED}
    if not numbers:
        raise ConfigError(f"the label maps of {root} show no class: there is nothing to learn")
    if names is None:
        return tuple(f"class {number}" for number in range(max(numbers) + 1))
    if max(numbers) >= len(names):
        raise ConfigError(
            f"the label maps of {root} have the number {max(numbers)}, and its file of names "
            f"{len(names)} names, for 0 to {len(names) - 1}: add the others"
        )
    return tuple(names)


def _labels_of(path: Path) -> set[int]:
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except OSError as error:
        raise ConfigError(f"label map {path} cannot be read: {error}") from error
    if values.ndim != 2 or values.dtype != np.uint8:
        raise ConfigError(
            f"label map {path} has shape {values.shape} and type {values.dtype}: give one channel "
            "of 8 bits with the number of each pixel's class"
        )
    return set(np.unique(values).tolist())
