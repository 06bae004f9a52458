"""Loading images that may be broken."""

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from slide_mm.data_checks.samples import require_whole, sample_paths
from slide_mm.engine.config import type_name
from slide_mm.engine.data_paths import is_local, iter_datasets
from slide_mm.engine.reporting import ConfigError

# More broken files one after the other are no accident.
MAX_BROKEN_IN_A_ROW = 10


@TRANSFORMS.register_module()
class PassOverUnreadable(BaseTransform):
    """Load a file for training; where it is broken, warn and let the dataset take another.

    Args:
        loading: Config of the transform that loads, such as ``dict(type='LoadImageFromFile')``.
    """

    def __init__(self, loading: dict[str, Any]) -> None:
        self.loading = TRANSFORMS.build(loading)
        self.broken_in_a_row = 0

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load what ``results`` names, or return None, which datasets take as a wish for another.

        Args:
            results: A sample, with its ``img_path``.

        Raises:
            ConfigError: If loading fails and the files are sound, so that the config or the
                annotations are wrong; or if one file after the other is broken.
        """
        given = dict(results)
        try:
            loaded = self.loading(results)
        except ConfigError:
            raise
        except Exception as error:  # Decoders raise many kinds.
            self._pass_over(given, error)
            return None
        self.broken_in_a_row = 0
        return loaded

    def _pass_over(self, sample: dict[str, Any], error: Exception) -> None:
        step = type(self.loading).__name__
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        paths = sample_paths(sample)
        broken = [path for path in paths if is_broken(path)]
        if not broken:
            raise ConfigError(
                f"{step} fails on {' and '.join(map(str, paths))} ({reason}), and the file is "
                "sound: its annotations or the step's options are wrong; "
                "tools/misc/check_data.py looks through all annotations"
            ) from error
        self.broken_in_a_row += 1
        if self.broken_in_a_row > MAX_BROKEN_IN_A_ROW:
            raise ConfigError(
                f"{step} can't read one file after the other, {self.broken_in_a_row} now, the last "
                f"{broken[0]} ({reason}): tools/misc/check_data.py finds all such files"
            ) from error
        print_log(
            f"passing over {broken[0]}: {step} failed ({reason}); "
            "tools/misc/check_data.py finds all such files",
            logger="current",
            level=logging.WARNING,
        )


def is_broken(path: str) -> bool:
    """Whether a file can't be opened, or decoded as an image, whatever a config says of it."""
    try:
        content = Path(path).read_bytes() if is_local(path) else fileio.get(path)
        require_whole(content)
        if _is_known_to_pillow(content):
            return False
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) is None
    except Exception:  # Decoders raise many kinds.
        return True


def _is_known_to_pillow(content: bytes) -> bool:
    """Whether Pillow knows the format of an image."""
    try:
        with Image.open(BytesIO(content)):
            return True
    except UnidentifiedImageError:
        return False
    except (ValueError, Image.DecompressionBombError):  # For its size, for example.
        return True


def pass_over_broken_files(cfg: Config) -> None:
    """Let the training go on, with a warning, where an image or a label map is broken."""
    for _, dataset in iter_datasets(cfg, "train"):
        if "pipeline" in dataset:
            dataset.pipeline = [
                dict(type="PassOverUnreadable", loading=step)
                if type_name(step).startswith("Load")
                else step
                for step in dataset.pipeline
            ]
