"""Building a config's model for its errors, before a run that needs hours and writes files."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from slide_mm.checkpoints import read_checkpoint
from slide_mm.engine.data_paths import is_local
from slide_mm.engine.reporting import ConfigError


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
    scope = DefaultScope.overwrite_default_scope(cfg.get("default_scope"))
    try:
        with scope, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The run builds the model again, and repeats them.
            model = MODELS.build(copy.deepcopy(cfg.model))
    except (ValueError, KeyError, TypeError) as error:
        if not _is_config_mistake(error):
            raise
        raise ConfigError(f"cannot build the model of {cfg.filename}: {error.args[0]}") from error
    if pretrained:
        for module in model.modules():
            init_cfg = getattr(module, "init_cfg", None)
            if isinstance(init_cfg, dict) and is_local(init_cfg.get("checkpoint")):
                read_checkpoint(init_cfg["checkpoint"])
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


def _is_config_mistake(error: Exception) -> bool:
    """Whether a constructor refused what a config gave it, as opposed to failing inside."""
    message = str(error)
    return (
        isinstance(error, ValueError)
        or (isinstance(error, KeyError) and " registry" in message)
        or (isinstance(error, TypeError) and "unexpected keyword argument" in message)
    )
