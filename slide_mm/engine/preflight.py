"""Checks that need seconds, before a run that needs hours and writes files."""

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from slide_mm.checkpoints import (
    CheckpointError,
    check_state_dict_fits,
    get_state_dict,
    read_checkpoint,
)
from slide_mm.engine.config import iter_evaluators
from slide_mm.engine.reporting import ConfigError, log_once

# An original backbone fits 70 % and more of its Slide variant, whose token mixers differ in two
# stages; the next smaller or larger arch of a family fits about 55 %.
_MIN_BACKBONE_FIT = 0.6


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Refuse a config whose data isn't there.

    Args:
        cfg: The config.
        splits: Those of ``'train'``, ``'val'`` and ``'test'`` that the run will use. A split that
            the config sets to None is not used.

    Raises:
        ConfigError: If a folder or an annotation file of one of their datasets or metrics doesn't
            exist.
    """
    for split in splits:
        for key, dataset in iter_datasets(cfg, split):
            for name, path in dataset_paths(dataset):
                _require_path(path, f"{key}.{name}", f"{key}.data_root")
        for metric in iter_evaluators(cfg.get(f"{split}_evaluator")):
            if metric.get("ann_file"):
                key = f"{split}_evaluator.ann_file"
                _require_path(metric.ann_file, key, key)


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
            if isinstance(init_cfg, dict) and _is_local(init_cfg.get("checkpoint")):
                read_checkpoint(init_cfg["checkpoint"])
                with silence_logger():  # The run loads it again, and tells.
                    module.init_weights()
    return model


def check_checkpoint(cfg: Config, model: nn.Module, whole: bool) -> None:
    """Refuse a ``load_from`` that is missing, damaged or of another architecture.

    MMEngine loads what fits and warns of the rest, and so would train or test random weights.

    Args:
        cfg: The config.
        model: Its model.
        whole: Whether all of the model must fit, as for testing and resuming, or only most of the
            backbone, as for fine-tuning.

    Raises:
        CheckpointError: If the file doesn't exist, cannot be read or doesn't fit.
    """
    path = cfg.get("load_from")
    if not _is_local(path):
        return
    checkpoint = read_checkpoint(path)
    if cfg.get("resume") and not {"meta", "message_hub"} <= checkpoint.keys():
        raise CheckpointError(
            f"checkpoint {path} holds weights without the state of a training, so --resume cannot "
            "go on from it: start from its weights with --cfg-options load_from=PATH"
        )
    source = f"checkpoint {path}"
    if whole or not hasattr(model, "backbone"):
        check_state_dict_fits(model, get_state_dict(checkpoint), source)
        return
    weights = get_state_dict(checkpoint, prefix="backbone.")
    if not weights:
        raise CheckpointError(
            f"{source} has no backbone: give weights of a bare backbone as "
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...), not as load_from"
        )
    check_state_dict_fits(model.backbone, weights, source, _MIN_BACKBONE_FIT)


def set_resume(cfg: Config, resume: str | None) -> None:
    """Set ``resume`` and ``load_from`` to the checkpoint to go on from.

    A training killed while it wrote a checkpoint leaves a damaged one, or none where its name is
    recorded; the one before it is taken then.

    Args:
        cfg: The config.
        resume: A checkpoint; ``'auto'`` for the last one in the work folder, and without any the
            training starts as the config says; None for what the config says.

    Raises:
        CheckpointError: If there are checkpoints in the work folder and none can be read.
    """
    if resume is None and cfg.get("resume") and not cfg.get("load_from"):
        resume = "auto"
    if resume == "auto":
        resume = _last_checkpoint(Path(cfg.work_dir))
        cfg.resume = resume is not None
    elif resume is not None:
        cfg.resume = True
    if resume is not None:
        cfg.load_from = resume


@contextmanager
def silence_logger() -> Iterator[None]:
    """Keep MMEngine's current logger quiet."""
    logger = MMLogger.get_current_instance()
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def _last_checkpoint(work_dir: Path) -> str | None:
    candidates = _recent_checkpoints(work_dir)
    for path in candidates:
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            log_once(f"not resuming: {error}")
        else:
            return str(path)
    if candidates:
        raise CheckpointError(
            f"no checkpoint in {work_dir} can be read, the last is {candidates[0]}: remove them "
            "to start from the beginning"
        )
    log_once(f"nothing to resume in {work_dir}: starting from the beginning")
    return None


def _recent_checkpoints(work_dir: Path) -> list[Path]:
    """Checkpoints of a work folder: the recorded one, then the others, newest first."""
    record = work_dir / "last_checkpoint"
    recorded = record.read_text().strip() if record.is_file() else ""
    others = [*work_dir.glob("epoch_*.pth"), *work_dir.glob("iter_*.pth")]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    first = [Path(recorded)] if recorded else []
    return first + [path for path in others if path not in first]


def iter_datasets(cfg: Config, split: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the datasets of a split, those inside wrappers, each with its dotted key."""
    loader = cfg.get(f"{split}_dataloader") or {}
    return _unwrap(loader.get("dataset"), f"{split}_dataloader.dataset")


def _unwrap(dataset: Any, key: str) -> Iterator[tuple[str, ConfigDict]]:
    if not isinstance(dataset, dict):
        return
    if "dataset" in dataset:
        yield from _unwrap(dataset.dataset, f"{key}.dataset")
    elif "datasets" in dataset:
        for index, part in enumerate(dataset.datasets):
            yield from _unwrap(part, f"{key}.datasets.{index}")
    else:
        yield key, dataset


def dataset_paths(dataset: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield a dataset's local paths as MMEngine joins them, each with its key."""
    if (dataset.get("backend_args") or {}).get("backend", "local") != "local":
        return
    root = dataset.get("data_root") or ""
    if root:
        yield "data_root", root
    prefixes = (dataset.get("data_prefix") or {}).items()
    paths = [("ann_file", dataset.get("ann_file"))]
    paths += [(f"data_prefix.{name}", prefix) for name, prefix in prefixes]
    for name, path in paths:
        if path:
            yield name, os.path.join(root, path)


def missing_path(path: str, key: str, option: str) -> str | None:
    """Say that a path doesn't exist and what to do, or return None.

    Args:
        path: The path; nothing is said of remote ones.
        key: Where the config names it; begins with the split.
        option: What to set to name another place.
    """
    if not _is_local(path) or os.path.exists(path):
        return None
    below = "" if os.path.isabs(path) else f" below {os.getcwd()}"
    return (
        f"{key} is {path}, which does not exist{below}: put the dataset there, as docs/data.md "
        f"tells, or say where it is with --cfg-options {option}=PATH"
    )


def _require_path(path: str, key: str, option: str) -> None:
    message = missing_path(path, key, option)
    if message:
        raise ConfigError(message)


def _is_local(path: str | None) -> bool:
    return bool(path) and "://" not in path


def _is_config_mistake(error: Exception) -> bool:
    """Whether a constructor refused what a config gave it, as opposed to failing inside."""
    message = str(error)
    return (
        isinstance(error, ValueError)
        or (isinstance(error, KeyError) and " registry" in message)
        or (isinstance(error, TypeError) and "unexpected keyword argument" in message)
    )
