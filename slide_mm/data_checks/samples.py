"""Images and label maps, read as a training reads them, and to their end."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import cv2
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
    """What reading a sample found: a broken file and its problem, and what its label map holds.

    ``labels`` are those that occur; ``ignored`` and ``pixels`` are numbers of pixels.
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
        paths = paths if isinstance(paths, list) else [paths]
        try:
            for path in paths:
                _read_whole(path, self.load_image)
            loaded = self.load_image(dict(sample))
            assert loaded is not None, "it could not be decoded"
            height, width = loaded["img"].shape[:2]
        except Exception as error:  # Decoders raise many kinds.
            return Seen(paths[0], _unreadable(error))
        annotated = sample.get("width"), sample.get("height")
        if None not in annotated and annotated != (width, height):
            problem = f"is {width} x {height} pixels, and annotated as {_by(annotated)}"
            return Seen(paths[0], problem)
        path = sample.get("seg_map_path")
        if not path or (not self.load_labels and "segments_info" not in sample):
            return Seen()
        try:
            if "segments_info" in sample:
                return self._read_segments(path, sample["segments_info"], (width, height))
            return self._read_labels(path, loaded, (width, height))
        except Exception as error:  # Decoders raise many kinds.
            return Seen(path, _unreadable(error))

    def _read_labels(self, path: str, loaded: Sample, size: tuple[int, int]) -> Seen:
        content = _read_whole(path, self.load_labels)
        labels = self.load_labels(loaded)["gt_seg_map"]
        if labels.ndim != 2:
            hint = " (imdecode_backend='pillow' reads the numbers of a palette)"
            hint = hint if _mode(content) == "P" else ""
            return Seen(path, f"has {labels.shape[2]} channels: label maps have one{hint}")
        if labels.shape[::-1] != size:
            return _of_other_size(path, labels, size)
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
            label = max(seen.labels) + bool(loaded.get("reduce_zero_label"))
            seen.path = path
            seen.problem = f"has the label {label}, and the config {self.num_classes} classes"
        return seen

    def _read_segments(
        self, path: str, segments: Sequence[Mapping[str, Any]], size: tuple[int, int]
    ) -> Seen:
        """Read a panoptic PNG: red, green and blue are the digits of segments' ids."""
        content = _read_whole(path, self.load_image)
        colors = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        ids = colors.astype(np.int64) @ (256**2, 256, 1)  # OpenCV has blue first.
        if ids.shape[::-1] != size:
            return _of_other_size(path, ids, size)
        absent = {segment["id"] for segment in segments} - set(np.unique(ids).tolist())
        if absent:
            example = min(absent, key=str)
            return Seen(path, f"lacks {len(absent)} of its segments, for example {example}")
        return Seen()


def _read_whole(path: str, step: Any) -> bytes:
    """A file's content, from where a pipeline's step takes it; see :func:`require_whole`."""
    content = fileio.get(path, backend_args=getattr(step, "backend_args", None))
    require_whole(content)
    return content


def require_whole(content: bytes) -> bool:
    """Let Pillow decode an image to its end; OpenCV takes what is cut off for grey.

    Formats that Pillow doesn't know, and what it refuses for its size, pass.

    Returns:
        Whether Pillow knows the image's format.

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
        return True
    except UnidentifiedImageError:
        return False
    except ValueError:
        return True
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


def _unreadable(error: Exception) -> str:
    return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"


def _of_other_size(path: str, labels: np.ndarray, size: tuple[int, int]) -> Seen:
    return Seen(path, f"is {_by(labels.shape[::-1])} pixels, and its image {_by(size)}")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
