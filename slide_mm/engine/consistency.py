"""A config against itself: what its parts must agree on, told before anything is run.

Each check takes the config, its model and the splits that the run will use, and yields a line for
each disagreement.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, OPTIMIZERS, DefaultScope
from torch import Tensor, nn

from slide_mm.engine.config import iter_nodes, type_name
from slide_mm.engine.data_paths import iter_datasets
from slide_mm.engine.preflight import image_channels

# A side that all usual strides divide, and that costs little.
_IMAGE_SIZE = 256
# Heads that tell apart something else than the dataset's classes.
_OTHER_HEADS = ("FusedSemanticHead", "STDCHead")
_HOOKS = ("default_hooks", "custom_hooks")


def find_inconsistencies(cfg: Config, model: nn.Module, splits: Sequence[str]) -> Iterator[str]:
    """Yield a line for each disagreement between parts of a config.

    Args:
        cfg: The config.
        model: Its model.
        splits: Those of ``'train'``, ``'val'`` and ``'test'`` that the run will use.
    """
    for check in _CHECKS:
        yield from check(cfg, model, splits)


def compare_classes(cfg: Config, model: nn.Module, splits: Sequence[str]) -> Iterator[str]:
    """Compare the number of classes that heads tell apart with the datasets' classes."""
    if hasattr(model, "language_model"):
        return  # Its classes are words, of which it has room for more.
    told = set()
    for key, _, built in _iter_built(cfg, splits):
        meta = getattr(built, "metainfo", {})
        classes = meta.get("classes")
        if isinstance(classes, str):
            yield f"{key}.metainfo.classes is the text {classes!r}: give a tuple of names"
        elif isinstance(classes, list | tuple):
            for name, head in iter_heads(model):
                wrong = _compare_head(head, meta)
                if wrong and name not in told:
                    told.add(name)
                    yield f"model.{name}.{wrong} ({key}): let both be the same"


def _iter_built(
    cfg: Config, splits: Sequence[str]
) -> Iterator[tuple[str, ConfigDict, BaseDataset | None]]:
    """Yield datasets, each with its key and config, built without reading their annotations.

    Where that fails there is None, as others tell.
    """
    for split in splits:
        for key, dataset in iter_datasets(cfg, split):
            options = {**dataset, "pipeline": [], "lazy_init": True, "serialize_data": False}
            built = None
            with (
                suppress(Exception),
                DefaultScope.overwrite_default_scope(cfg.get("default_scope")),
            ):
                built = DATASETS.build(options)
            yield key, dataset, built


def iter_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the heads that tell classes apart, by name."""
    for name, module in model.named_modules():
        is_head = "head" in name and "rpn" not in name and "reid" not in name
        is_other = type(module).__name__ in _OTHER_HEADS or getattr(module, "class_agnostic", False)
        if is_head and not is_other and isinstance(getattr(module, "num_classes", None), int):
            yield name, module


def _compare_head(head: nn.Module, meta: dict[str, Any]) -> str | None:
    """Say how a head's number of classes differs from a dataset's, or return None."""
    things, stuff = meta.get("thing_classes"), meta.get("stuff_classes")
    expected = {"num_classes": len(meta["classes"])}
    if things is not None and stuff is not None:
        apart = {"num_things_classes": len(things), "num_stuff_classes": len(stuff)}
        expected = apart if hasattr(head, "num_things_classes") else {"num_classes": len(things)}
    elif getattr(head, "out_channels", None) == 1 and expected["num_classes"] <= 2:
        return None  # One channel says yes or no.
    for attribute, number in expected.items():
        value = getattr(head, attribute)
        if value != number:
            kind = attribute.removeprefix("num_").replace("_", " ").replace("things", "thing")
            return f"{attribute} is {value}, and the dataset has {number} {kind}"
    return None


def compare_zero_labels(cfg: Config, model: nn.Module, splits: Sequence[str]) -> Iterator[str]:
    """Compare what datasets and their pipelines say of the label 0."""
    for key, dataset, built in _iter_built(cfg, splits):
        its_own = getattr(built, "reduce_zero_label", None)
        for _, step in iter_nodes(dataset.get("pipeline")):
            given = step.get("reduce_zero_label")
            is_loading = type_name(step) == "LoadAnnotations"
            if is_loading and its_own is not None and given not in (None, its_own):
                yield (
                    f"{key}: reduce_zero_label is {its_own} in the dataset and {given} in its "
                    "pipeline's LoadAnnotations: set it in the dataset alone"
                )
                break


def compare_maps(cfg: Config, model: nn.Module, splits: Sequence[str]) -> Iterator[str]:
    """Compare the maps of backbone and neck with the channels and strides of what takes them.

    A small image goes through them; what fails over it is left for the first iteration to tell.
    """
    neck = getattr(model, "neck", None)
    with torch.no_grad():
        maps = given = _maps_of_backbone(model)
        if given and neck is not None:
            maps = _run(neck, given)
    first = neck[0] if isinstance(neck, nn.Sequential) else neck
    wanted, channels = getattr(first, "in_channels", None), [x.shape[1] for x in given]
    if given and not maps and isinstance(wanted, list | tuple) and list(wanted) != channels:
        yield (
            f"model.neck.in_channels is {list(wanted)}, and the backbone's maps have {channels} "
            "channels"
        )
    if maps:
        yield from _compare_decoders(model, maps)
        yield from _compare_strides(model, maps)


def _maps_of_backbone(model: nn.Module) -> list[Tensor]:
    image = torch.zeros(1, image_channels(model), _IMAGE_SIZE, _IMAGE_SIZE)
    return _run(getattr(model, "backbone", None), image)


def _run(module: nn.Module | None, inputs: Any) -> list[Tensor]:
    """The maps that a backbone or neck gives, or nothing."""
    if module is None:
        return []
    training = module.training
    try:
        outputs = module.eval()(inputs)
    except Exception:  # It may want another size, or more than an image.
        return []
    finally:
        module.train(training)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    is_maps = all(isinstance(output, Tensor) and output.ndim == 4 for output in outputs)
    return outputs if is_maps else []


def _compare_decoders(model: nn.Module, maps: Sequence[Tensor]) -> Iterator[str]:
    """Heads of segmentors pick maps by ``in_index``."""
    for name, head in _iter_decoders(model):
        indices = _indices(head)
        given = [maps[index].shape[1] for index in indices if -len(maps) <= index < len(maps)]
        if not indices:
            continue
        if len(given) < len(indices):
            yield f"model.{name}.in_index is {head.in_index}, and there are {len(maps)} maps"
            continue
        wanted = head.in_channels
        joined = given if isinstance(wanted, list | tuple) else sum(given)
        if (list(wanted) if isinstance(wanted, list | tuple) else wanted) != joined:
            yield (
                f"model.{name}.in_channels is {wanted}, and the maps that reach it have {given} "
                "channels"
            )


def _iter_decoders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in ("decode_head", "auxiliary_head"):
        heads = getattr(model, name, None)
        parts = heads if isinstance(heads, nn.ModuleList) else [heads]
        for index, head in enumerate(parts):
            if hasattr(head, "in_index") and hasattr(head, "in_channels"):
                yield f"{name}.{index}" if parts is heads else name, head


def _indices(head: nn.Module) -> list[int]:
    """The maps that a head takes; nothing where they are no numbers."""
    indices = head.in_index if isinstance(head.in_index, list | tuple) else [head.in_index]
    return list(indices) if all(isinstance(index, int) for index in indices) else []


def _compare_strides(model: nn.Module, maps: Sequence[Tensor]) -> Iterator[str]:
    """Anchors and points lie on the image by their strides, and regions on the maps by theirs."""
    given = [_IMAGE_SIZE / x.shape[-1] for x in maps]
    for name, module in model.named_modules():
        generator = getattr(module, "prior_generator", None)
        strides = getattr(generator, "strides", None) or getattr(module, "featmap_strides", None)
        if not strides or "semantic" in name or "glbctx" in name:
            continue
        strides = [stride[0] if isinstance(stride, tuple) else stride for stride in strides]
        if not all(isinstance(stride, int | float) and stride > 0 for stride in strides):
            yield f"model.{name} has the strides {strides}: give positive numbers"
            continue
        # Extractors of regions take the first maps, heads all of them.
        taken = given if generator else given[: len(strides)]
        # Strides that are wrong differ by a stage or more.
        is_near = (abs(math.log2(x / y)) < 0.5 for x, y in zip(taken, strides, strict=False))
        if len(taken) != len(strides) or not all(is_near):
            yield (
                f"model.{name} is made for maps of the strides {strides}, and the maps that reach "
                f"it have {[round(stride) for stride in taken]}: set them, or the backbone's "
                "out_indices and the neck's start_level, so that both are the same"
            )


def find_unused_parameters(model: nn.Module) -> list[str]:
    """Name parameters of backbone and neck that get no gradient, as no head looks at their maps.

    Distributed training waits for their gradients in vain. A small image goes forward and back;
    the gradients are removed again.
    """
    maps = _maps_of_backbone(model)
    if maps and getattr(model, "neck", None) is not None:
        maps = _run(model.neck, maps)
    taken = {index for _, head in _iter_decoders(model) for index in _indices(head)}
    if taken:
        maps = [x for index, x in enumerate(maps) if {index, index - len(maps)} & taken]
    if not any(x.requires_grad for x in maps):
        return []
    sum(x.sum() for x in maps).backward()
    unused = [
        f"{part}.{name}"
        for part in ("backbone", "neck")
        for name, parameter in getattr(model, part, nn.Module()).named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    model.zero_grad(set_to_none=True)
    return unused


def find_unknown_optimizers(cfg: Config, model: nn.Module, splits: Sequence[str]) -> Iterator[str]:
    """Find optimizers that no registry knows; MMEngine's own error doesn't name them."""
    if "train" not in splits:
        return
    for key, node in iter_nodes(cfg.get("optim_wrapper"), "optim_wrapper"):
        kind = node.get("type")
        if key.endswith(".optimizer") and isinstance(kind, str):
            with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
                if OPTIMIZERS.get(kind) is None:
                    yield f"{key}.type is {kind!r}, which no registry of optimizers knows"


def find_wrong_intervals(cfg: Config, model: nn.Module, splits: Sequence[str]) -> Iterator[str]:
    """Find intervals that would only be refused when the first one is over."""
    parts = {"train_cfg": cfg.get("train_cfg") or {}} if "train" in splits else {}
    parts |= {key: node for name in _HOOKS for key, node in iter_nodes(cfg.get(name), name)}
    for key, node in parts.items():
        for name in ("interval", "val_interval", "val_begin"):
            value = node.get(name, 1)
            if not isinstance(value, int) or (name == "val_interval" and value < 1):
                yield f"{key}.{name} is {value!r}: give a whole number of iterations or epochs"


_CHECKS = (
    compare_classes,
    compare_zero_labels,
    compare_maps,
    find_unknown_optimizers,
    find_wrong_intervals,
)
