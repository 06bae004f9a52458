"""Images and label maps, read as a training reads them, and to their end."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import mmcv
import numpy as np
from mmengine import fileio
from PIL import Image, UnidentifiedImageError

Sample = dict[str, Any]
Transform = Callable[[Sample], Sample | None]


def find_missing(paths: Sequence[str]) -> list[str]:
    """Those of many local paths where no file is.

    Their folders are listed, which is faster than to ask for each file.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = _list_files(folder or ".")
        # Some file systems know a name in other forms than they list it.
        if name not in listed[folder] and not os.path.isfile(path):
            missing.append(path)
    return missing


def _list_files(folder: str) -> set[str]:
    if not os.path.isdir(folder):
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}


def sample_paths(sample: Mapping[str, Any]) -> list[str]:
    """The files of a sample: its image or images, and its label map."""
    paths = []
    for name in ("img_path", "img_path2", "seg_map_path"):
        value = sample.get(name)
        paths += value if isinstance(value, list) else [value] if value else []
    return paths


@dataclass
class Seen:
    """What reading a sample found.

    Attributes:
        path: The file that something is wrong with, or None.
        problem: What is wrong with it.
        labels: Labels of its map that occur.
        ignored: Pixels of its map that are ignored.
        pixels: Pixels of its map.
    """

    path: str | None = None
    problem: str = ""
    labels: frozenset[int] = frozenset()
    ignored: int = 0
    pixels: int = 0


@dataclass
class SampleReader:
    """Reads samples by a pipeline's own steps.

    Args:
        load_image: Its step that loads images.
        load_labels: Its step that loads label maps, or None.
        num_classes: Number of classes of the label maps; None where they aren't the data set's.
        ignored: Labels that are ignored.
    """

    load_image: Transform
    load_labels: Transform | None = None
    num_classes: int | None = None
    ignored: Iterable[int] = field(default=(255,))

    def __call__(self, sample: Sample) -> Seen:
        """Read a sample's image and label map, whole.

        Args:
            sample: As the dataset hands it to its pipeline.
        """
        paths = sample["img_path"]
        path = paths[0] if isinstance(paths, list) else paths
        try:
            for part in paths if isinstance(paths, list) else [paths]:
                require_whole(read_bytes(part, self.load_image))
            loaded = self.load_image(dict(sample))
            assert loaded is not None, "it could not be decoded"
            height, width = loaded["img"].shape[:2]
        except Exception as error:  # Decoders raise many kinds.
            return Seen(path, f"cannot be read: {_reason(error)}")
        annotated = sample.get("width"), sample.get("height")
        if None not in annotated and annotated != (width, height):
            return Seen(path, f"is {_by(width, height)} pixels, and annotated as {_by(*annotated)}")
        if not sample.get("seg_map_path"):
            return Seen()
        if "segments_info" in sample:
            return self._read_segments(sample, (height, width))
        return self._read_labels(loaded, (height, width)) if self.load_labels else Seen()

    def _read_labels(self, loaded: Sample, shape: tuple[int, int]) -> Seen:
        path = loaded["seg_map_path"]
        try:
            content = read_bytes(path, self.load_labels)
            require_whole(content)
            labels = self.load_labels(loaded)["gt_seg_map"]
        except Exception as error:  # Decoders raise many kinds.
            return Seen(path, f"cannot be read: {_reason(error)}")
        if labels.ndim != 2:
            hint = " (imdecode_backend='pillow' reads the numbers of a palette)"
            hint = hint if _mode(content) == "P" else ""
            return Seen(path, f"has {labels.shape[2]} channels: label maps have one{hint}")
        if labels.shape != shape:
            return Seen(
                path, f"is {_by(*labels.shape[::-1])} pixels, and its image {_by(*shape[::-1])}"
            )
        return self._judge_labels(path, labels, content, bool(loaded.get("reduce_zero_label")))

    def _judge_labels(self, path: str, labels: np.ndarray, content: bytes, reduced: bool) -> Seen:
        values, counts = np.unique(labels, return_counts=True)
        is_ignored = np.isin(values, list(self.ignored))
        seen = Seen(
            labels=frozenset(values[~is_ignored].tolist()),
            ignored=int(counts[is_ignored].sum()),
            pixels=labels.size,
        )
        largest = _largest_value(content) if labels.dtype == np.uint8 else 0
        if largest > 255:
            seen.path, seen.problem = path, f"has the value {largest}, of which 8 bits are read"
        elif self.num_classes is not None and max(seen.labels, default=0) >= self.num_classes:
            found = f"the label {max(seen.labels) + reduced}"
            seen.path = path
            seen.problem = f"has {found}, and the config {self.num_classes} classes"
        return seen

    def _read_segments(self, sample: Sample, shape: tuple[int, int]) -> Seen:
        """Read a panoptic PNG: red, green and blue are the digits of segments' ids."""
        path = sample["seg_map_path"]
        try:
            content = read_bytes(path, self.load_image)
            require_whole(content)
            colors = mmcv.imfrombytes(content, flag="color", channel_order="rgb")
            ids = colors.astype(np.int64) @ (1, 256, 256**2)
        except Exception as error:  # Decoders raise many kinds.
            return Seen(path, f"cannot be read: {_reason(error)}")
        if ids.shape != shape:
            return Seen(
                path, f"is {_by(*ids.shape[::-1])} pixels, and its image {_by(*shape[::-1])}"
            )
        absent = {segment["id"] for segment in sample["segments_info"]} - set(
            np.unique(ids).tolist()
        )
        if absent:
            return Seen(
                path, f"lacks {len(absent)} of its segments, for example {min(absent, key=str)}"
            )
        return Seen()


def read_bytes(path: str, step: Any) -> bytes:
    """A file's content, from where a pipeline's step takes it."""
    return fileio.get(path, backend_args=getattr(step, "backend_args", None))


def require_whole(content: bytes) -> None:
    """Let Pillow decode an image to its end; OpenCV takes what is cut off for grey.

    Formats that Pillow doesn't know, and what it refuses for its size, pass.

    Raises:
        OSError: If the image is cut off or broken.
        SyntaxError: If it is a broken PNG.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(content)) as image:
            warnings.simplefilter("ignore")
            image.draft("RGB", (1, 1))  # Decodes a JPEG coarsely, but reads all of it.
            image.load()
    except (UnidentifiedImageError, ValueError):
        return
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _mode(content: bytes) -> str:
    """Pillow's name of an image's kind, ``''`` where it doesn't know it."""
    try:
        with Image.open(BytesIO(content)) as image:
            return image.mode
    except (OSError, ValueError):
        return ""


def _largest_value(content: bytes) -> int:
    """The largest value of a map whose file has more than 8 bits, 65535 apart; 0 for others."""
    if _mode(content)[:1] not in ("I", "F"):
        return 0
    with Image.open(BytesIO(content)) as image:
        values = np.asarray(image)
    return int(values[values != 65535].max(initial=0))  # All bits set: 255 in eight of them.


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _by(width: int, height: int) -> str:
    return f"{width} x {height}"
