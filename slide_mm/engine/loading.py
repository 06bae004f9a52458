"""Loading images that may be broken."""

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine import fileio
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from slide_mm.data_checks.samples import require_whole, sample_paths
from slide_mm.engine.config import type_name
from slide_mm.engine.data_paths import is_local, iter_datasets
from slide_mm.engine.reporting import ConfigError

# More broken files one after the other are no accident.
MAX_BROKEN_IN_A_ROW = 10


@TRANSFORMS.register_module()
class PassOverUnreadable:
    """Load a file; where it is broken, warn and let the dataset take another, or end the run.

    Args:
        loading: Config of the transform that loads, such as ``dict(type='LoadImageFromFile')``.
        refuse: Whether to end the run, as for validation and testing: figures must be of all.
    """

    def __init__(self, loading: dict[str, Any], refuse: bool = False) -> None:
        self.loading = TRANSFORMS.build(loading)
        self.refuse = refuse
        self.broken_in_a_row = 0

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load what ``results`` names, or return None, for which datasets draw another sample.

        Args:
            results: A sample, with its ``img_path``.

        Raises:
            ConfigError: If loading fails and the files are sound, so that the config or the
                annotations are wrong; or if a file is broken and ``refuse`` is set, or one file
                after the other is broken.
        """
        given = dict(results)
        try:
            loaded = self.loading(results)
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
        self._tell_broken(broken[0], f"{step} failed ({reason})")

    def _tell_broken(self, path: str, reason: str) -> None:
        if self.refuse:
            raise ConfigError(
                f"{path} is broken: {reason}; mend it or take it out of the annotations: figures "
                "of a part of the images would not be comparable"
            )
        hint = "tools/misc/check_data.py finds all such files"
        self.broken_in_a_row += 1
        if self.broken_in_a_row > MAX_BROKEN_IN_A_ROW:
            raise ConfigError(
                f"one file after the other is broken, {self.broken_in_a_row} now, the last "
                f"{path}: {reason}; {hint}"
            )
        print_log(f"passing over {path}: {reason}; {hint}", logger="current", level=logging.WARNING)


def is_broken(path: str) -> bool:
    """Whether a file can't be opened, or decoded as an image, whatever a config says of it."""
    if is_local(path) and not Path(path).is_file():
        return True
    try:
        content = Path(path).read_bytes() if is_local(path) else fileio.get(path)
        if require_whole(content):
            return False
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) is None
    except Exception:  # Decoders raise many kinds.
        return True


def tell_broken_files(cfg: Config) -> None:
    """Let a training pass over broken images and label maps, and a test end with one line."""
    for split in ("train", "val", "test"):
        options = dict(type="PassOverUnreadable", refuse=split != "train")
        for _, dataset in iter_datasets(cfg, split):
            if "pipeline" in dataset:
                dataset.pipeline = [
                    dict(options, loading=step) if type_name(step).startswith("Load") else step
                    for step in dataset.pipeline
                ]
