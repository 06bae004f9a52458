"""The weights that a run starts from: what is checked is what is loaded."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from slide_mm.checkpoints import (
    CheckpointError,
    check_state_dict_fits,
    check_weights,
    get_state_dict,
    is_lifeless,
    read_checkpoint,
    select_state_dict,
)

# An original backbone fits 70 % and more of its Slide variant, whose token mixers differ in two
# stages; the next smaller or larger arch of a family fits about 55 %.
_MIN_BACKBONE_FIT = 0.6
# All that MMEngine loads from: files, addresses and names of its catalogues.
_SCHEMES = (
    *("", "http://", "https://", "pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"),
    *("modelzoo://", "torchvision://", "open-mmlab://", "openmmlab://", "mmcls://"),
)
_STATE_OF_TRAINING = {
    "meta": ("epoch", "iter"),
    "message_hub": ("log_scalars", "runtime_info", "resumed_keys"),
    "optimizer": (),
}
# The checkpoint that was checked last, until MMEngine asks for it.
_checked: dict[str, dict[str, Any]] = {}


def read_checkpoints_safely() -> None:
    """Let MMEngine read checkpoints by :func:`load_from_slide_mm` alone, in this process.

    Its own way unpickles files, which runs the code in them.
    """
    CheckpointLoader.register_scheme(_SCHEMES, load_from_slide_mm, force=True)


def load_from_slide_mm(path: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint for MMEngine, or hand on what :func:`check_checkpoint` has read.

    What takes the tensors copies them to where it is: ``map_location`` isn't used.

    Returns:
        ``state_dict``, ``meta``, and what else the file holds that is plain.

    Raises:
        CheckpointError: If the file cannot be read, or has weights that are not finite.
    """
    if path in _checked:
        return _checked.pop(path)
    origin = f"checkpoint {path}"
    checkpoint = read_checkpoint(path)
    # Names of this catalogue mean the backbone alone.
    prefix = "backbone." if path.startswith("mmcls://") else ""
    state_dict = get_state_dict(checkpoint, prefix, origin)
    if not state_dict:
        raise CheckpointError(f"{origin} has no weights: give a file with a state_dict")
    usual = {
        name: torch.empty(0, dtype=torch.float32 if x.is_floating_point() else x.dtype)
        for name, x in state_dict.items()
    }
    check_weights(state_dict, usual, origin)
    return _as_mmengine_has_it(checkpoint, state_dict)


def check_checkpoint(cfg: Config, model: nn.Module, whole: bool) -> dict[str, Any]:
    """Refuse a ``load_from`` that is missing, damaged or of another architecture.

    MMEngine loads what fits and warns of the rest, and so would train or test random weights.

    Args:
        cfg: The config.
        model: Its model.
        whole: Whether all of the model must fit, as for testing and resuming, or only most of the
            backbone, as for fine-tuning.

    Returns:
        What MMEngine will be handed; empty without a ``load_from``.

    Raises:
        CheckpointError: If the file doesn't exist, cannot be read, doesn't fit or has weights that
            are not finite.
    """
    path = cfg.get("load_from")
    if not path:
        return {}
    origin = f"checkpoint {path}"
    checkpoint = read_checkpoint(path)
    expected = model.state_dict()
    state_dict = select_state_dict(checkpoint, expected, origin)
    for name in [name for name in state_dict if name.startswith("module.")]:
        if name not in expected:
            del state_dict[name]  # MMEngine would cut that off, and put it over another tensor.
    if cfg.get("resume"):
        _check_state_of_training(checkpoint, state_dict, origin)
    if whole or not hasattr(model, "backbone"):
        check_state_dict_fits(model, state_dict, origin)
    else:
        weights = get_state_dict(state_dict, prefix="backbone.")
        if not weights:
            raise CheckpointError(
                f"{origin} has no backbone: give weights of a bare backbone as "
                "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...), not as load_from"
            )
        check_state_dict_fits(model.backbone, weights, origin, _MIN_BACKBONE_FIT)
    _checked.clear()
    _checked[str(path)] = _as_mmengine_has_it(checkpoint, state_dict)
    return _checked[str(path)]


def load_weights(cfg: Config, model: nn.Module, checkpoint: str) -> dict[str, Any]:
    """Check a checkpoint of a config's model, and load it; ``load_from`` is set to it.

    Returns:
        See :func:`check_checkpoint`.

    Raises:
        CheckpointError: See :func:`check_checkpoint`.
    """
    cfg.load_from = checkpoint
    check_checkpoint(cfg, model, whole=True)
    expected = model.state_dict()
    content = _checked.pop(str(checkpoint))
    # Tables of indices, which aren't checked, may be of another version's shape.
    fitting = {
        name: tensor
        for name, tensor in content["state_dict"].items()
        if name in expected and tensor.shape == expected[name].shape
    }
    model.load_state_dict(fitting, strict=False)
    return content


def _check_state_of_training(
    checkpoint: Mapping[str, Any], state_dict: Mapping[str, Tensor], origin: str
) -> None:
    for name, keys in _STATE_OF_TRAINING.items():
        state = checkpoint.get(name)
        missing = [key for key in keys if not isinstance(state, dict) or key not in state]
        if missing or not state:
            what = f"{name} with {missing[0]}" if missing else name
            raise CheckpointError(
                f"{origin} holds weights without the state of a training, as there is no {what}, "
                "so --resume cannot go on from it: start from its weights with --cfg-options "
                "load_from=PATH"
            )
    counts = [checkpoint["meta"][key] for key in _STATE_OF_TRAINING["meta"]]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise CheckpointError(f"{origin} has counted epochs and iterations as {counts}")
    if "ema_state_dict" in checkpoint:  # MMEngine swaps it with state_dict.
        beside = f"ema_state_dict of {origin}"
        averaged = get_state_dict(checkpoint["ema_state_dict"], origin=beside)
        averaged.pop("steps", None)
        for name, tensor in averaged.items():
            if name not in state_dict or state_dict[name].shape != tensor.shape:
                raise CheckpointError(f"{beside} has another {name} than its state_dict")
        check_weights(averaged, state_dict, beside)


def _as_mmengine_has_it(
    checkpoint: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Put a checkpoint in the form of MMEngine's own, without what is lifeless."""
    content = dict(checkpoint)
    try:
        _remove_lifeless(content, {})
    except RecursionError as error:
        raise CheckpointError("the checkpoint holds lists in lists without an end") from error
    meta = content.get("meta")
    meta = dict(meta) if isinstance(meta, dict) else {}
    meta.pop("config", None)  # MMEngine would run it.
    dataset_meta = meta.get("dataset_meta")
    if not isinstance(dataset_meta, dict) or not all(isinstance(key, str) for key in dataset_meta):
        meta.pop("dataset_meta", None)
    return {**content, "meta": meta, "state_dict": state_dict}


def _remove_lifeless(value: Any, known: dict[int, bool]) -> bool:
    """Take out of dicts what could not be rebuilt, such as methods that MMEngine sets anew.

    Returns:
        Whether the value itself is plain.
    """
    if id(value) in known:
        return known[id(value)]
    known[id(value)] = True
    if isinstance(value, dict):
        for key in [key for key, item in value.items() if not _remove_lifeless(item, known)]:
            del value[key]
    elif isinstance(value, list | tuple | deque | set | frozenset):
        known[id(value)] = all(_remove_lifeless(item, known) for item in value)
    else:
        known[id(value)] = not is_lifeless(value)
    return known[id(value)]
