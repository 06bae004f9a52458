"""Loading images that may be broken."""

import logging
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from slide_mm.engine.config import type_name
from slide_mm.engine.data_paths import iter_datasets


@TRANSFORMS.register_module()
class PassOverUnreadable(BaseTransform):
    """Load a file for training; where it cannot be read, warn and let the dataset take another.

    Args:
        loading: Config of the transform that loads, such as ``dict(type='LoadImageFromFile')``.
    """

    def __init__(self, loading: dict[str, Any]) -> None:
        self.loading = TRANSFORMS.build(loading)

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load what ``results`` names, or return None, which datasets take as a wish for another.

        Args:
            results: A sample, with its ``img_path``.
        """
        try:
            return self.loading(results)
        except Exception as error:  # Decoders raise many kinds.
            reason = " ".join(str(error).split()) or type(error).__name__
            print_log(
                f"passing over {results.get('img_path')}: {type(self.loading).__name__} failed "
                f"({reason}); tools/misc/check_data.py finds all such files",
                logger="current",
                level=logging.WARNING,
            )
            return None


def pass_over_broken_files(cfg: Config) -> None:
    """Let the training go on, with a warning, where an image or a label map cannot be read."""
    for _, dataset in iter_datasets(cfg, "train"):
        if "pipeline" in dataset:
            dataset.pipeline = [
                dict(type="PassOverUnreadable", loading=step)
                if type_name(step).startswith("Load")
                else step
                for step in dataset.pipeline
            ]
