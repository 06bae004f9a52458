"""Reading configs, and what the command-line options change in them."""

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from slide_mm.engine.plain_config import read_packed_config
from slide_mm.engine.reporting import ConfigError, log_once


def load_config(
    path: str | os.PathLike,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    launcher: str = "none",
) -> Config:
    """Read a config file and merge the options of the command line.

    Args:
        path: A ``.py``, ``.json`` or ``.yaml`` file, or a folder that
            ``tools/model_converters/pack.py`` has written.
        cfg_options: Values by dotted key, such as ``{'train_dataloader.batch_size': 4}``.
        work_dir: Where logs and checkpoints go. Default: the config's own ``work_dir``, or
            ``work_dirs/<name of the config>``.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ConfigError: If the file doesn't exist, isn't a config, or doesn't take the options.
    """
    path = Path(path)
    cfg = read_packed_config(path) if path.is_dir() else _read_file(path)
    try:
        cfg.merge_from_dict(dict(cfg_options or {}))
        # MMEngine imports what the file names; options may name more.
        import_modules_from_strings(**(cfg.get("custom_imports") or {"imports": []}))
    except Exception as error:  # It walks through what may be no dict or list, by any name.
        raise ConfigError(f"--cfg-options does not fit config {path}: {error}") from error
    cfg.launcher = launcher
    name = path.absolute().stem
    cfg.work_dir = work_dir or cfg.get("work_dir") or os.path.join("work_dirs", name)
    return cfg


def _read_file(path: Path) -> Config:
    if not path.is_file():
        raise ConfigError(f"config {path} does not exist: check the path")
    try:
        return Config.fromfile(path)
    except (Exception, SystemExit) as error:  # A config is a program, or inherits one.
        raise ConfigError(
            f"config {path} cannot be read: {type(error).__name__}: {error}"
        ) from error


def packed_weights(config: str | os.PathLike) -> str | None:
    """The folder, where a config is given as one of ``pack.py``: it stands for the weights, too."""
    return str(config) if os.path.isdir(config) else None


def require_weights(config: str | os.PathLike, checkpoint: str | None) -> str:
    """The checkpoint, or the packed folder that stands for config and checkpoint.

    Raises:
        ConfigError: If there is neither.
    """
    weights = checkpoint or packed_weights(config)
    if weights is None:
        raise ConfigError(
            f"there are no weights for config {config}: give a checkpoint after it, or in place of "
            "both a folder of tools/model_converters/pack.py"
        )
    return weights


def require_keys(cfg: Config, purpose: str, *keys: str) -> None:
    """Refuse a config that lacks what a command needs.

    Raises:
        ConfigError: If a key is missing or None, or not the dict, or for evaluators the list of
            them, that it must be.
    """
    for key in keys:
        value = cfg.get(key)
        if value is None:
            raise ConfigError(f"config {cfg.filename} has no {key}: {purpose} needs it")
        kinds = dict | list | tuple if key.endswith("evaluator") else dict
        if not isinstance(value, kinds):
            raise ConfigError(f"{key} is {value!r} in config {cfg.filename}: give a dict")


def type_name(node: Any) -> str:
    """Name of a config's ``type``, without its scope, or ``''``; it may be the class itself."""
    kind = node.get("type") if isinstance(node, dict) else None
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return name.rpartition(".")[2]


def iter_nodes(node: Any, key: str = "") -> Iterator[tuple[str, ConfigDict]]:
    """Yield every dict below a node of a config, itself included, each with its dotted key."""
    children: Any = ()
    if isinstance(node, dict):
        yield key, node
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    for name, child in children:
        yield from iter_nodes(child, f"{key}.{name}" if key else str(name))


def iter_evaluators(evaluator: Any) -> Iterator[ConfigDict]:
    """Yield the metric configs of an evaluator, which is one of them or a list."""
    for metric in evaluator if isinstance(evaluator, list | tuple) else [evaluator]:
        if isinstance(metric, dict):
            yield metric


def drop_worker_options(cfg: Config) -> None:
    """Leave out what PyTorch refuses of a loader without processes of its own."""
    for split in ("train", "val", "test"):
        loader = cfg.get(f"{split}_dataloader")
        if isinstance(loader, dict) and not loader.get("num_workers"):
            for option in ("persistent_workers", "prefetch_factor", "multiprocessing_context"):
                loader.pop(option, None)


def enable_amp(cfg: Config) -> None:
    """Train with automatic mixed precision.

    Raises:
        ConfigError: If the config has an optimizer wrapper of another kind.
    """
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper)
    if kind not in ("", "OptimWrapper", "AmpOptimWrapper"):
        raise ConfigError(f"--amp works with optim_wrapper.type='OptimWrapper', not {kind!r}")
    wrapper.type = "AmpOptimWrapper"
    wrapper.setdefault("loss_scale", "dynamic")


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the total batch size.

    Raises:
        ConfigError: If the config doesn't say which batch size its learning rate is for.
    """
    if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
        raise ConfigError(
            f"--auto-scale-lr needs auto_scale_lr.base_batch_size in config {cfg.filename}: set "
            "it to the batch size, over all GPUs, that the learning rate is for"
        )
    cfg.auto_scale_lr.enable = True


def get_task(cfg: Config) -> str:
    """``'mmdet'`` for a config of detection, ``'mmseg'`` for one of segmentation.

    Raises:
        ConfigError: If its ``default_scope`` is neither.
    """
    scope = cfg.get("default_scope")
    if scope not in ("mmdet", "mmseg"):
        raise ConfigError(
            f"config {cfg.filename} has default_scope={scope!r}: set it to 'mmdet' or 'mmseg'"
        )
    return scope


def write_predictions(cfg: Config, out: str) -> None:
    """Write what the model predicts: a pickle for detection, label maps for segmentation.

    Raises:
        ConfigError: If ``out`` is of the wrong kind.
    """
    is_pickle = out.endswith((".pkl", ".pickle"))
    if get_task(cfg) == "mmdet":
        if not is_pickle:
            raise ConfigError(f"--out {out}: detections go to a file, give a name in .pkl")
        metrics = list(iter_evaluators(cfg.test_evaluator))
        cfg.test_evaluator = [*metrics, dict(type="DumpDetResults", out_file_path=out)]
    else:
        if is_pickle or os.path.isfile(out):
            raise ConfigError(f"--out {out}: label maps go to a folder, give the name of one")
        for metric in iter_evaluators(cfg.test_evaluator):
            metric.output_dir = out


def draw_predictions(
    cfg: Config, show: bool = False, show_dir: str | None = None, wait_time: float = 2
) -> None:
    """Show pictures of the predictions in a window, or save them.

    Raises:
        ConfigError: If the config has no visualization hook.
    """
    hook = cfg.get("default_hooks", {}).get("visualization")
    if hook is None:
        raise ConfigError(
            f"config {cfg.filename} has no default_hooks.visualization, which draws: add "
            "dict(type='DetVisualizationHook') or dict(type='SegVisualizationHook')"
        )
    hook.draw = True
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir:
        # MMDetection's hook takes a folder and MMSegmentation's leaves it to the visualizer.
        if get_task(cfg) == "mmdet":
            hook.test_out_dir = os.path.abspath(show_dir)
        else:
            cfg.visualizer.save_dir = show_dir
            hook.interval = 1  # OpenMMLab's own draws each 50th image.


def enable_tta(cfg: Config) -> None:
    """Test with augmentation: the config's own, or else the image and its mirror image."""
    task = get_task(cfg)
    if "tta_model" not in cfg:
        cfg.tta_model = dict(
            mmdet=dict(
                type="DetTTAModel",
                tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
            ),
            mmseg=dict(type="SegTTAModel"),
        )[task]
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    if "tta_pipeline" not in cfg:
        cfg.tta_pipeline = _with_mirror_image(dataset.pipeline)
    dataset.pipeline = cfg.tta_pipeline
    if type_name(cfg.tta_model) == "DetTTAModel":
        _drop_masks(cfg)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _with_mirror_image(pipeline: list[dict]) -> list[dict]:
    *transforms, pack = copy.deepcopy(pipeline)
    if type_name(pack) == "PackDetInputs":
        pack.meta_keys = (
            *("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            *("flip", "flip_direction"),
        )
    # The upright view comes first: the metrics take its ground truth.
    flips = [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)]
    return [*transforms, dict(type="TestTimeAug", transforms=[flips, [pack]])]


def _drop_masks(cfg: Config) -> None:
    """MMDetection merges the boxes of several views, not their masks."""
    roi_head = cfg.model.get("roi_head", {})
    if roi_head.get("mask_head") is None:
        return
    log_once("--tta merges boxes, not masks: testing boxes alone")
    roi_head.mask_head = roi_head.mask_roi_extractor = None
    for metric in iter_evaluators(cfg.test_evaluator):
        if "segm" in metric.get("metric", ()):
            metric.metric = "bbox"
