"""The weights of a checkpoint, below whatever people wrap them in."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor

from slide_mm.checkpoints.errors import CheckpointError
from slide_mm.checkpoints.rebuilding import Unusable

# Weights averaged over the training come first, as in timm and in the code of Slide-Swin's authors.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_model", "model_state_dict_ema", "ema", "teacher")
_WRAPPERS = (
    *_AVERAGED,
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("weights", "params", "student"),
)
# What PyTorch's wrappers of modules put into names.
_PARTS_OF_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
_KNOWN_PARTS = {*_WRAPPERS, *_PARTS_OF_WRAPPERS, "backbone", "encoder", "encoder_q", "online"}
# Copies that self-supervised pretraining, and MMEngine's averaging, keep of a model.
_COPIES = ("student", "encoder_k", "key_encoder", "momentum", "target", "ema_state_dict")
_MAX_DEPTH = 8
_MAX_LENGTH = 500
# Of a tensor of the right name and another shape.
_SMALL_VOTE = 1 / 1024


def get_state_dict(
    checkpoint: Mapping[str, Any], prefix: str = "", origin: str = "checkpoint"
) -> dict[str, Tensor]:
    """Take the weights out of a checkpoint.

    Args:
        checkpoint: The weights themselves, or what holds them below ``state_dict``, ``model`` or
            another of the names that trainings use, in any nesting. Averaged ones come first:
            ``state_dict_ema``, ``model_ema`` and the like.
        prefix: Take only the weights below this name, such as ``'backbone.'``, and cut it off.
        origin: Where the checkpoint comes from, for messages.

    Returns:
        Tensors by name, without the ``module.`` and ``_orig_mod.`` that PyTorch's wrappers add.

    Raises:
        CheckpointError: If a name is no string or there twice, or if a tensor is quantised, sparse
            or another one that is no plain one.
    """
    tensors = next(_candidates(checkpoint), OrderedDict())
    return _require_plain(_cut_prefix(tensors, prefix), origin)


def select_state_dict(
    checkpoint: Mapping[str, Any], expected: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor]:
    """Take a model's weights out of a checkpoint, wherever they lie in it.

    Where several parts of it have most of the model's names and shapes, averaged weights are taken
    before others, and these before copies that were trained along.

    Args:
        checkpoint: See :func:`get_state_dict`.
        expected: The model's ``state_dict()``.
        origin: Where the checkpoint comes from, for messages.

    Returns:
        Tensors by the model's names, and those that lie beside them.

    Raises:
        CheckpointError: See :func:`get_state_dict` and :func:`check_weights`; and if two parts are
            equally good.
    """
    shapes = {name: x.shape for name, x in expected.items() if x.is_floating_point()}
    kept_parts = {part for name in expected for part in name.split(".")}
    votes = {}
    candidates = list(_candidates(checkpoint, kept_parts))
    for index, tensors in enumerate(candidates):
        for prefix, count in _count_votes(tensors, shapes).items():
            votes[index, prefix] = (count, -index)
    prefix, index = "", 0
    if votes:
        most, index = max(votes.values())
        index = -index
        prefixes = [prefix for key, prefix in votes if votes[key, prefix] == (most, -index)]
        is_model = most > len(shapes) / 2
        prefix = choose_prefix(prefixes if is_model else prefixes[:1], f"{origin} has the model")
    given = candidates[index] if candidates else OrderedDict()
    tensors = _cut_prefix(given, prefix)
    beside = {name.partition(".")[0] for name in given if not name.startswith(prefix)}
    if beside:
        parts = ", ".join(sorted(beside)[:10])
        print_log(f"{origin}: what isn't below {prefix} is left over: {parts}", logger="current")
    if shapes.keys() <= tensors.keys():
        for name in [name for name, x in tensors.items() if isinstance(x, Unusable)]:
            if name not in expected:
                del tensors[name]  # It isn't missed.
    check_weights(_require_plain(tensors, origin), expected, origin)
    return tensors


def choose_prefix(prefixes: list[str], problem: str) -> str:
    """Choose one of several names below which the same weights lie.

    Args:
        prefixes: At least one.
        problem: What to complain of if none is better than the others.

    Raises:
        CheckpointError: If none is.
    """
    best = min(map(_rank, prefixes))
    first, *others = (prefix for prefix in prefixes if _rank(prefix) == best)
    if others:
        raise CheckpointError(
            f"{problem} below {first} and below {others[0]}: save the one that you mean by itself"
        )
    return first


def check_weights(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str
) -> None:
    """Refuse tensors that cannot be the weights that they are named as.

    Args:
        state_dict: Tensors by name.
        expected: The model's ``state_dict()``, of which names and dtypes matter.
        origin: Where the weights come from, for the message.

    Raises:
        CheckpointError: If one has values that are NaN, infinite or too large for the model's
            dtype, or is integer or complex where the model is not.
    """
    for name, tensor in state_dict.items():
        if name in expected:
            check_weight(name, tensor, expected[name].dtype, origin)


def check_weight(name: str, tensor: Tensor, dtype: torch.dtype, origin: str) -> None:
    """Refuse a tensor that cannot be a model's weight: see :func:`check_weights`."""
    kinds = [str(kind).removeprefix("torch.") for kind in (tensor.dtype, dtype)]
    if tensor.is_complex() > dtype.is_complex or (
        dtype.is_floating_point and not tensor.is_floating_point()
    ):
        raise CheckpointError(
            f"{origin} has {kinds[0]} numbers in {name}, where the model has {kinds[1]}: give a "
            "checkpoint of plain weights"
        )
    # In the model's dtype: 1e300 is infinite in float32, and not every dtype knows of infinity.
    if not tensor.is_floating_point() or tensor.to(dtype).isfinite().all():
        return
    if _is_mask(name, tensor):
        return
    reason = f"they are too large for {kinds[1]}"
    if not tensor.double().isfinite().all():
        reason = "the training that wrote it had diverged"
    raise CheckpointError(
        f"{origin} has NaN or infinite values in {name}: {reason}; give an earlier checkpoint"
    )


def drop_wrapper_parts(name: str, kept: set[str] | frozenset[str] = frozenset()) -> str:
    """Take out of a name what PyTorch's wrappers of modules have put there.

    Args:
        name: Of a tensor.
        kept: Parts that belong to the model.
    """
    dropped = _PARTS_OF_WRAPPERS - kept
    return ".".join(part for part in name.split(".") if part not in dropped)


def _candidates(
    checkpoint: Mapping[Any, Any], kept_parts: set[str] | None = None
) -> Iterator[OrderedDict[str, Tensor | Unusable]]:
    """Yield all that can be the weights, the likeliest first."""
    seen = set()  # What is there below two names is one candidate.

    def visit(level: Any, depth: int) -> Iterator[OrderedDict[str, Tensor | Unusable]]:
        if not isinstance(level, Mapping) or depth > _MAX_DEPTH or id(level) in seen:
            return
        seen.add(id(level))
        for key in _WRAPPERS:
            yield from visit(level.get(key), depth + 1)
        tensors = _flatten(level, kept_parts)
        if tensors:
            yield tensors

    return visit(checkpoint, 0)


def _flatten(
    checkpoint: Mapping[Any, Any], kept_parts: set[str] | None
) -> OrderedDict[str, Tensor | Unusable]:
    """List all tensors by the names that dicts in dicts give them."""
    tensors = OrderedDict()
    seen = set()

    def clean(name: str) -> str:
        if kept_parts is not None:
            return drop_wrapper_parts(name, kept_parts)
        # A model that isn't known may have a part called module, but doesn't begin with it.
        return re.sub(r"^(module\.)+", "", drop_wrapper_parts(name, {"module"}))

    def put(name: str, value: Tensor | Unusable) -> None:
        if len(name) > _MAX_LENGTH:
            name, value = name[:40], Unusable("called by a name of no end")
        cleaned = clean(name)
        if cleaned not in tensors:
            tensors[cleaned] = value
        elif kept_parts is None:
            tensors[cleaned] = Unusable("there twice")
        else:
            tensors[name] = value

    def visit(level: Mapping[Any, Any], path: str, depth: int) -> None:
        seen.add(id(level))
        for key, value in level.items():
            if not isinstance(key, str):
                key, value = _label(key, value)
            if isinstance(value, Mapping) and depth < _MAX_DEPTH and id(value) not in seen:
                visit(value, f"{path}{key}.", depth + 1)
            elif isinstance(value, Tensor | Unusable):
                put(f"{path}{key}", value)

    visit(checkpoint, "", 0)
    metadata = getattr(checkpoint, "_metadata", {})
    tensors._metadata = OrderedDict((clean(str(name)), x) for name, x in metadata.items())
    return tensors


def _label(key: Any, value: Any) -> tuple[str, Any]:
    """Name what is called by no name, and refuse it if it is a tensor."""
    kind = type(key).__name__
    label = str(key) if type(key) is int and abs(key) < 1 << 31 else f"({kind})"
    is_tensor = isinstance(value, Tensor | Unusable)
    return label, Unusable(f"called by a {kind}, not by a name") if is_tensor else value


def _cut_prefix(
    tensors: OrderedDict[str, Tensor | Unusable], prefix: str
) -> OrderedDict[str, Tensor | Unusable]:
    below = OrderedDict(
        (name.removeprefix(prefix), tensor)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    )
    below._metadata = OrderedDict(
        (f"{name}.".removeprefix(prefix).removesuffix("."), versions)
        for name, versions in getattr(tensors, "_metadata", {}).items()
        if not prefix or f"{name}.".startswith(prefix)
    )
    return below


def _require_plain(
    tensors: OrderedDict[str, Tensor | Unusable], origin: str
) -> OrderedDict[str, Tensor]:
    for name, tensor in tensors.items():
        if isinstance(tensor, Unusable):
            raise CheckpointError(
                f"{origin} has no plain tensor in {name}: it is {tensor.kind}; give a checkpoint "
                "of plain weights"
            )
    return tensors


def _count_votes(
    tensors: Mapping[str, Tensor | Unusable], shapes: Mapping[str, torch.Size]
) -> Counter[str]:
    """Count the tensors of a model that lie below each name."""
    votes = Counter()
    for name, tensor in tensors.items():
        parts = name.split(".")
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            if rest in shapes:
                fits = isinstance(tensor, Unusable) or tensor.shape == shapes[rest]
                votes["".join(f"{part}." for part in parts[:start])] += 1 if fits else _SMALL_VOTE
    return votes


def _rank(prefix: str) -> tuple[bool, bool, bool, bool]:
    """Averaged weights come before others, these before names nobody knows, copies last."""
    parts = prefix.split(".")[:-1]
    averaged = any(part in _AVERAGED for part in parts)
    copied = any(part.startswith(_COPIES) for part in parts)
    return copied, not _KNOWN_PARTS.issuperset(parts), not averaged, bool(parts)


def _is_mask(name: str, tensor: Tensor) -> bool:
    """Whether it tells an attention what not to look at, by adding minus infinity."""
    is_named = "mask" in name.rpartition(".")[2]
    return is_named and tensor.ndim > 1 and bool(((tensor == 0) | tensor.isneginf()).all())
