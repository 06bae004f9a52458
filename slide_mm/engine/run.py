"""Training and testing."""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from slide_mm.engine.amp import adapt_amp_to_device
from slide_mm.engine.checkpoint_hook import save_checkpoints_whole
from slide_mm.engine.config import (
    draw_predictions,
    drop_worker_options,
    enable_amp,
    enable_auto_scale_lr,
    enable_tta,
    get_task,
    load_config,
    require_keys,
    require_weights,
    write_predictions,
)
from slide_mm.engine.consistency import find_inconsistencies
from slide_mm.engine.data_paths import check_data
from slide_mm.engine.data_report import check_annotations
from slide_mm.engine.distributed import (
    check_launcher,
    find_unused_for_ddp,
    leave_process_group,
    prepare_for_cpu,
)
from slide_mm.engine.first_iteration import FirstIteration, first_iteration
from slide_mm.engine.loading import tell_broken_files
from slide_mm.engine.locking import WorkDirLock
from slide_mm.engine.preflight import check_model
from slide_mm.engine.randomness import make_repeatable
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.resuming import set_resume
from slide_mm.engine.watching import SomePictures, watch
from slide_mm.engine.weights import check_checkpoint


def train(
    config: str,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    validate: bool = True,
    log: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = "none",
) -> None:
    """Train the model of a config.

    Args:
        config: Config file.
        work_dir: Where logs and checkpoints go. Default: the config's own ``work_dir``, or
            ``work_dirs/<name of the config>``.
        resume: A checkpoint to go on from, or ``'auto'`` for the last one in ``work_dir``, if
            there is one.
        amp: Use automatic mixed precision: float16 on GPUs, bfloat16 on the CPU.
        auto_scale_lr: Scale the learning rate with the total batch size.
        validate: Validate during the training, as the config says.
        log: ``'tensorboard'`` or ``'wandb'``: where logged values go too, with pictures of some
            predictions in each validation.
        cfg_options: Config values by dotted key.
        launcher: ``'none'``, or who started the processes of a distributed training:
            ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ConfigError: If the config or an option is wrong, or data is missing.
        CheckpointError: If a checkpoint is missing, damaged or of another architecture.
    """
    with first_iteration() as first:
        check_launcher(launcher)
        cfg = first.cfg = load_config(config, cfg_options, work_dir, launcher)
        require_keys(cfg, "training", "model", "train_dataloader", "train_cfg", "optim_wrapper")
        if amp:
            enable_amp(cfg)
        if auto_scale_lr:
            enable_auto_scale_lr(cfg)
        if not validate:
            cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        if log:
            watch(cfg, log)
        check_data(cfg, ("train", "val"))
        check_annotations(cfg, ("train", "val"))
        with WorkDirLock(cfg.work_dir) as lock, first.leave_nothing_in(cfg.work_dir):
            lock.take()
            _train(cfg, resume, first, *([SomePictures()] if log else []))
    leave_process_group()


def _train(cfg: Config, resume: str | None, first: FirstIteration, *hooks: Hook) -> None:
    asked = copy.deepcopy(cfg)
    model = _check_model(cfg, "train", "val")
    meta = set_resume(cfg, resume, model)
    if meta is None:
        check_checkpoint(cfg, model, whole=False)
    find_unused_for_ddp(cfg, model)
    del model

    drop_worker_options(cfg)
    make_repeatable(cfg, meta)
    save_checkpoints_whole(cfg)
    tell_broken_files(cfg)
    adapt_amp_to_device(cfg)
    prepare_for_cpu(cfg)
    _build_runner(cfg, asked, first, *hooks).train()


def _check_model(cfg: Config, *splits: str) -> nn.Module:
    model = check_model(cfg, pretrained="train" in splits)
    for line in find_inconsistencies(cfg, model, splits):
        raise ConfigError(line)
    return model


def _build_runner(cfg: Config, asked: Config, *hooks: Hook) -> Runner:
    runner = RUNNERS.build(cfg)
    runner.cfg = asked  # For files: what else is in the config is known to these tools alone.
    runner.dump_config()
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def test(
    config: str,
    checkpoint: str | None = None,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    tta: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = "none",
) -> dict[str, float]:
    """Test a checkpoint on the test set of a config.

    Args:
        config: Config file, or a folder that ``tools/model_converters/pack.py`` has written.
        checkpoint: Weights of the config's model. Default: those in the folder.
        work_dir: Where logs go. Default: see :func:`train`.
        out: Write the predictions: a ``.pkl`` file for detection, a folder for label maps in
            segmentation.
        show: Show pictures of the predictions in a window.
        show_dir: Save pictures of the predictions in this folder.
        wait_time: Seconds to show each picture.
        tta: Test with augmentation: the config's ``tta_model`` and ``tta_pipeline``, or else the
            image and its mirror image.
        cfg_options: Config values by dotted key.
        launcher: See :func:`train`.

    Returns:
        The metrics by name.

    Raises:
        ConfigError: If the config or an option is wrong, or data is missing.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    with first_iteration() as first:
        check_launcher(launcher)
        cfg = first.cfg = load_config(config, cfg_options, work_dir, launcher)
        require_keys(cfg, "testing", "model", "test_dataloader", "test_cfg", "test_evaluator")
        cfg.load_from, cfg.resume = require_weights(config, checkpoint), False
        if out is not None:
            write_predictions(cfg, out)
        if show or show_dir:
            draw_predictions(cfg, show, show_dir, wait_time)
        check_data(cfg, ("test",))
        check_annotations(cfg, ("test",))
        label_maps = out if get_task(cfg) == "mmseg" else None
        with first.leave_nothing_in(cfg.work_dir, show_dir, label_maps):
            metrics = _test(cfg, tta, first)
    leave_process_group()
    return metrics


def _test(cfg: Config, tta: bool, first: FirstIteration) -> dict[str, float]:
    asked = copy.deepcopy(cfg)
    model = _check_model(cfg, "test")
    check_checkpoint(cfg, model, whole=True)
    del model

    if tta:
        enable_tta(cfg)
    drop_worker_options(cfg)
    tell_broken_files(cfg)
    prepare_for_cpu(cfg)
    return _build_runner(cfg, asked, first).test()
