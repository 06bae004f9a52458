"""A config's schedule, sizes and heads, for other data than its own."""

import math
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from slide_mm.engine.config import iter_evaluators, iter_nodes, type_name
from slide_mm.engine.reporting import ConfigError

# Iterations that a small data set is trained for, unless the config itself has fewer.
_ITERATIONS = 6000
_MAX_EPOCHS = 100
_NUM_VALIDATIONS = 12
# The share of a training that warms up at most.
_WARM_UP = 0.1
# The least that DINO's crops have on four maps, for its 900 queries.
_PIXELS_PER_QUERY = 3
_WITHOUT_MASKS = {"MaskRCNN": "FasterRCNN", "CascadeRCNN": "CascadeRCNN"}
_SIZES = {"scale", "scales", "crop_size", "img_scale", "size", "random_size_range", "stride"}


def set_num_classes(cfg: Config, num_classes: int) -> None:
    """Give every head of the model its number of classes, and its losses a weight for each."""
    for key, node in iter_nodes(cfg.model):
        if "num_things_classes" in node:
            node.update(num_things_classes=num_classes, num_stuff_classes=0)
        if "num_classes" in node and "rpn" not in key:
            node["num_classes"] = num_classes
        weights = node.get("class_weight")
        if isinstance(weights, list | tuple):
            node["class_weight"] = _fit_weights(weights, num_classes)


def _fit_weights(weights: Sequence[float], num_classes: int) -> list[float] | None:
    """Keep a weight of all classes, and another of none of them; forget those of single ones."""
    *of_classes, of_none = weights
    return [of_classes[0]] * num_classes + [of_none] if len(set(of_classes)) == 1 else None


def drop_masks(cfg: Config, task: str) -> str | None:
    """Let the model learn boxes alone; returns a line if it has learnt masks so far.

    Args:
        cfg: The config.
        task: What is to be told of the data, if the model can't.

    Raises:
        ConfigError: If masks are not a part of the model that can be left out.
    """
    metrics = [x for split in ("val", "test") for x in iter_evaluators(cfg[f"{split}_evaluator"])]
    before, roi_head = type_name(cfg.model), cfg.model.get("roi_head") or {}
    if not any("segm" in metric.get("metric", ()) for metric in metrics):
        return None
    if not roi_head.get("mask_head") or before not in _WITHOUT_MASKS:
        raise ConfigError(f"{before} learns masks, and {task}: choose a config of a box detector")
    for split in ("train", "val", "test"):
        for _, node in iter_nodes(cfg[f"{split}_dataloader"].dataset):
            if node.get("with_mask"):
                node["with_mask"] = False
    for metric in metrics:
        metric.metric = "bbox"
    cfg.model.type = _WITHOUT_MASKS[before]
    roi_head.mask_head = roi_head.mask_roi_extractor = None
    return f"{before} without masks becomes {cfg.model.type} with boxes alone"


def fit_schedule(
    cfg: Config, num_images: int, num_gpus: int, epochs: int | None
) -> tuple[int, int]:
    """Fit length, warm-up and learning rate to the number of images and the batch size.

    Returns:
        Epochs and iterations of the training.
    """
    batch_size = cfg.train_dataloader.batch_size * num_gpus
    _scale_lr(cfg, batch_size)
    by_epoch = "max_epochs" in cfg.train_cfg
    per_epoch = math.ceil(num_images / batch_size)
    if epochs is None:
        epochs = min(math.ceil(_ITERATIONS / per_epoch), _MAX_EPOCHS)
        if by_epoch:
            epochs = max(epochs, cfg.train_cfg.max_epochs)
        else:
            epochs = min(epochs, math.ceil(cfg.train_cfg.max_iters / per_epoch))
    length = "max_epochs" if by_epoch else "max_iters"
    before, after = cfg.train_cfg[length], epochs if by_epoch else epochs * per_epoch
    cfg.train_cfg[length] = after
    interval = max(1 if by_epoch else per_epoch, after // _NUM_VALIDATIONS)
    cfg.train_cfg.val_interval = cfg.default_hooks.checkpoint.interval = interval
    if "dynamic_intervals" in cfg.train_cfg:
        cfg.train_cfg.dynamic_intervals = None
    cfg.default_hooks.checkpoint.setdefault("save_best", "auto")
    schedulers = cfg.param_scheduler  # A single one may stand without a list.
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    _fit_schedulers(schedulers, epochs, epochs * per_epoch, after / before)
    for _, hook in iter_nodes(cfg.get("custom_hooks")):
        if "switch_epoch" in hook:
            hook["switch_epoch"] = round(hook["switch_epoch"] * after / before)
    return epochs, epochs * per_epoch


def _scale_lr(cfg: Config, batch_size: int) -> None:
    """Let the learning rate grow with the batch size, if the config says which one it is for.

    In proportion for SGD; with the square root for Adam and its kin, whose steps don't grow with
    the gradient (Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms).
    """
    scaling, optimizer = cfg.get("auto_scale_lr", {}), cfg.optim_wrapper.optimizer
    if scaling.get("base_batch_size"):
        ratio = batch_size / scaling.base_batch_size
        factor = ratio if type_name(optimizer) == "SGD" else math.sqrt(ratio)
        optimizer.lr = float(f"{optimizer.lr * factor:.3g}")
        scaling.base_batch_size = batch_size


def _fit_schedulers(
    schedulers: Sequence[ConfigDict], epochs: int, iterations: int, ratio: float
) -> None:
    """Shorten a warm-up that would be much of the training, and stretch what comes after it."""
    ends = {}
    for scheduler in schedulers:
        by_epoch = scheduler.get("by_epoch", True)
        if type_name(scheduler) == "LinearLR" and not scheduler.get("begin"):
            longest = math.ceil(_WARM_UP * (epochs if by_epoch else iterations))
            before, scheduler.end = scheduler.end, min(scheduler.end, longest)
            ends[by_epoch, before] = scheduler.end
            continue
        for key in scheduler.keys() & {"begin", "end", "T_max"}:
            stretched = round(scheduler[key] * ratio)
            scheduler[key] = ends.get((by_epoch, scheduler[key]), stretched)
        if "milestones" in scheduler:
            scheduler.milestones = [max(1, round(x * ratio)) for x in scheduler.milestones]


def scale_images(cfg: Config, side: int) -> None:
    """Scale all sizes of the pipelines alike, to a short side of ``side`` for testing.

    Raises:
        ConfigError: If the config doesn't say at what size it tests.
    """
    nodes = [node for _, node in iter_nodes(cfg.val_dataloader.dataset)]
    old = next((min(x["scale"]) for x in nodes if type_name(x) == "Resize"), None)
    if old is None:
        raise ConfigError(
            f"--image-size needs a Resize with a scale in val_dataloader of {cfg.filename}"
        )

    def scale(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(scale(part) for part in value)
        return max(1, round(value * side / old))

    pipelines = [cfg[f"{split}_dataloader"].dataset for split in ("train", "val", "test")]
    parts = [*pipelines, cfg.get("tta_pipeline"), cfg.get("custom_hooks")]
    parts += [cfg.model.get("data_preprocessor"), cfg.model.get("test_cfg")]
    for _, node in (pair for part in parts for pair in iter_nodes(part)):
        for key in node.keys() & _SIZES:
            if node[key]:
                node[key] = scale(node[key])
    _fit_queries(cfg.model, (side / old) ** 2)


def _fit_queries(model: ConfigDict, ratio: float) -> None:
    """Take no more queries than small maps have pixels, if queries are chosen among those.

    Args:
        model: Of the config; DINO and its kin are meant.
        ratio: Of the maps' pixels to those before.
    """
    if model.get("as_two_stage") and model.get("num_queries"):
        most = max(1, int(_PIXELS_PER_QUERY * model.num_queries * ratio))
        model.num_queries = min(model.num_queries, most)
        if "max_per_img" in (model.get("test_cfg") or {}):
            model.test_cfg.max_per_img = min(model.test_cfg.max_per_img, model.num_queries)
