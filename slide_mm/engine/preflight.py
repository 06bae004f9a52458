"""Building a config's model for its errors, before a run that needs hours and writes files."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine.data_paths import is_local
from slide_mm.engine.explaining import explain
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.weights import read_checkpoints_safely


def check_model(cfg: Config, pretrained: bool) -> nn.Module:
    """Build the config's model once, for its errors.

    Args:
        cfg: The config.
        pretrained: Whether the run will start from the local files that ``init_cfg`` names in the
            model's parts. They are then loaded.

    Raises:
        ConfigError: If the model cannot be built.
        CheckpointError: If a file doesn't exist, cannot be read or doesn't fit.
    """
    read_checkpoints_safely()  # Some constructors load weights, too.
    scope = DefaultScope.overwrite_default_scope(cfg.get("default_scope"))
    try:
        with scope, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The run builds the model again, and repeats them.
            model = MODELS.build(copy.deepcopy(cfg.model))
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:  # Constructors fail in many ways over what a config gives them.
        raise ConfigError(
            f"cannot build the model of {cfg.filename}: {explain(error, cfg)}"
        ) from error
    if pretrained:
        for module in model.modules():
            init_cfg = getattr(module, "init_cfg", None)
            parts = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
            if any(isinstance(x, dict) and is_local(x.get("checkpoint")) for x in parts):
                with silence_log():  # The run loads it again, and tells.
                    module.init_weights()
    return model


@contextmanager
def silence_log() -> Iterator[None]:
    """Keep MMEngine from logging."""
    logger = MMLogger.get_current_instance()
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def image_channels(model: nn.Module) -> int:
    """Number of channels of the images that a model takes.

    That of its backbone, or else of the means that its preprocessor subtracts, or else 3.
    """
    channels = getattr(getattr(model, "backbone", None), "in_channels", None)
    if isinstance(channels, int):
        return channels
    mean = getattr(getattr(model, "data_preprocessor", None), "mean", None)
    return 3 if mean is None else len(mean)
