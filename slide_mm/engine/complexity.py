"""Counting what a config's model costs."""

import torch

from slide_mm.analysis import Complexity, count_complexity
from slide_mm.engine.config import get_task, load_config, require_keys
from slide_mm.engine.explaining import explain
from slide_mm.engine.preflight import check_model, image_channels
from slide_mm.engine.reporting import ConfigError

# Those that detectors and segmentors are usually counted for, in the paper too.
_IMAGE_SIZES = {"mmdet": (800, 1280), "mmseg": (512, 2048)}


def get_flops(
    config: str, image_size: tuple[int, int] | None = None
) -> tuple[tuple[int, int], Complexity]:
    """Count operations and parameters of a config's model, without weights or data.

    Args:
        config: Config file of a detector or segmentor.
        image_size: Height and width, in pixels. Default: 800 x 1280 for detection, 512 x 2048
            for segmentation.

    Returns:
        The image size, and what :func:`slide_mm.analysis.count_complexity` says.

    Raises:
        ConfigError: If the config or the size is wrong, or its model cannot be counted.
    """
    cfg = load_config(config)
    require_keys(cfg, "counting", "model")
    image_size = image_size or _IMAGE_SIZES[get_task(cfg)]
    if min(image_size) < 1:
        raise ConfigError(f"--shape is {image_size[0]} {image_size[1]}: give two positive numbers")
    with torch.device("meta"):
        model = check_model(cfg, pretrained=False)
    try:
        return image_size, count_complexity(model, image_size, image_channels(model))
    except Exception as error:  # Foreign models may need data, or operators for real tensors alone.
        raise ConfigError(
            f"the model of {cfg.filename} cannot be counted at {image_size[0]} x {image_size[1]}: "
            f"{explain(error, cfg)}"
        ) from error
