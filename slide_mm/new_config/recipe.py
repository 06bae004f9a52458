"""A config's schedule, sizes and heads, for other data than its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from slide_mm.engine.config import iter_nodes, type_name

# Iterations that a small data set is trained for, unless the config itself has fewer.
_ITERATIONS = 6000
_MAX_EPOCHS = 100
_NUM_VALIDATIONS = 12
# The share of a training that warms up at most.
_WARM_UP = 0.1
_WITHOUT_MASKS = {"MaskRCNN": "FasterRCNN", "CascadeRCNN": "CascadeRCNN"}
_SIZES = ("scale", "scales", "crop_size", "img_scale", "size")


def set_num_classes(cfg: Config, num_classes: int) -> None:
    """Give every head of the model its number of classes."""
    for _, node in iter_nodes(cfg.model):
        if "num_classes" in node:
            node["num_classes"] = num_classes


def drop_masks(cfg: Config) -> str | None:
    """Let the model learn boxes alone; returns a line if it has learnt masks so far."""
    roi_head = cfg.model.get("roi_head") or {}
    for split in ("train", "val", "test"):
        for _, node in iter_nodes(cfg[f"{split}_dataloader"].dataset):
            if node.get("with_mask"):
                node["with_mask"] = False
        metric = cfg[f"{split}_evaluator"] if split != "train" else {}
        if metric.get("metric"):
            metric.metric = "bbox"
    if not roi_head.get("mask_head"):
        return None
    before = type_name(cfg.model)
    cfg.model.type = _WITHOUT_MASKS.get(before, before)
    roi_head.mask_head = roi_head.mask_roi_extractor = None
    return f"{before} without masks becomes {cfg.model.type} with boxes alone"


def fit_schedule(
    cfg: Config, num_images: int, num_gpus: int, epochs: int | None
) -> tuple[int, int]:
    """Fit length, warm-up and learning rate to the number of images and the batch size.

    The learning rate grows with the batch size over all GPUs, if ``auto_scale_lr`` says which one
    it is for.

    Returns:
        Epochs and iterations of the training.
    """
    batch_size = cfg.train_dataloader.batch_size * num_gpus
    scaling = cfg.get("auto_scale_lr", {})
    if scaling.get("base_batch_size"):
        cfg.optim_wrapper.optimizer.lr *= batch_size / scaling.base_batch_size
        scaling.base_batch_size = batch_size
    by_epoch = "max_epochs" in cfg.train_cfg
    per_epoch = math.ceil(num_images / batch_size)
    if epochs is None:
        epochs = min(math.ceil(_ITERATIONS / per_epoch), _MAX_EPOCHS)
        if by_epoch:
            epochs = max(epochs, cfg.train_cfg.max_epochs)
        else:
            epochs = min(epochs, math.ceil(cfg.train_cfg.max_iters / per_epoch))
    before = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    after = epochs if by_epoch else epochs * per_epoch
    interval = max(1, after // _NUM_VALIDATIONS)
    cfg.train_cfg.update({"max_epochs" if by_epoch else "max_iters": after})
    cfg.train_cfg.val_interval = cfg.default_hooks.checkpoint.interval = interval
    cfg.default_hooks.checkpoint.setdefault("save_best", "auto")
    _fit_schedulers(cfg.param_scheduler, by_epoch, before, after, epochs * per_epoch)
    return epochs, epochs * per_epoch


def _fit_schedulers(
    schedulers: Sequence[Mapping], by_epoch: bool, before: int, after: int, iterations: int
) -> None:
    warm_up = 0
    for scheduler in schedulers:
        if type_name(scheduler) == "LinearLR":
            warm_up = scheduler["end"] = min(scheduler["end"], math.ceil(_WARM_UP * iterations))
            continue
        for key in scheduler.keys() & {"end", "T_max"}:
            scheduler[key] = after
        if not by_epoch and scheduler.get("begin"):
            scheduler["begin"] = warm_up
        if "milestones" in scheduler:
            scheduler["milestones"] = [
                max(1, round(milestone * after / before)) for milestone in scheduler["milestones"]
            ]


def scale_images(cfg: Config, side: int) -> None:
    """Scale all sizes of the pipelines alike, to a short side of ``side`` for testing."""
    (old,) = (
        min(node["scale"])
        for _, node in iter_nodes(cfg.val_dataloader.dataset.pipeline)
        if type_name(node) == "Resize"
    )

    def scale(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(scale(part) for part in value)
        return max(1, round(value * side / old))

    for split in ("train", "val", "test"):
        _change(cfg[f"{split}_dataloader"].dataset.pipeline, scale)
    preprocessor = cfg.model.get("data_preprocessor") or {}
    if preprocessor.get("size"):
        preprocessor["size"] = scale(preprocessor["size"])


def _change(pipeline: Any, change: Callable[[Any], Any]) -> None:
    for _, node in iter_nodes(pipeline):
        for key in _SIZES:
            if node.get(key):
                node[key] = change(node[key])
