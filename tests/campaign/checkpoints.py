"""Checkpoints that are damaged, unfit or wrapped, drawn at random."""

import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Edit = Callable[[dict[str, Tensor], str], None]


def _set(make: Callable[[Tensor], object]) -> Edit:
    def edit(weights: dict[str, Tensor], name: str) -> None:
        weights[name] = make(weights[name])

    return edit


def _fill(value: float) -> Edit:
    return _set(lambda tensor: torch.full_like(tensor, value))


UNFIT: dict[str, Edit] = {
    "nan": _fill(float("nan")),
    "inf": _fill(float("inf")),
    "too large": _set(lambda x: torch.full_like(x, 1e300, dtype=torch.float64)),
    "integers": _set(lambda x: x.round().int()),
    "complex": _set(lambda x: x.to(torch.complex64)),
    "sparse": _set(lambda x: x.to_sparse()),
    "meta": _set(lambda x: x.to("meta")),
    "quantised": _set(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)),
    "another shape": _set(lambda x: x.new_zeros(x.shape[0] + 1, *x.shape[1:])),
    "text": _set(lambda x: "weights"),
    "missing": lambda weights, name: weights.pop(name),
    "renamed": lambda weights, name: weights.update({f"{name}x": weights.pop(name)}),
    "number for a name": lambda weights, name: weights.update({7: weights.pop(name)}),
}


def unfit_weights(rng: random.Random, weights: Mapping[str, Tensor]) -> tuple[str, dict]:
    """What is wrong, and a checkpoint where that is wrong with one weight."""
    weights = dict(weights)
    names = [name for name, x in weights.items() if x.is_floating_point() and x.ndim > 0]
    what, name = rng.choice(list(UNFIT)), rng.choice(names)
    UNFIT[what](weights, name)
    return f"{name}: {what}", {"state_dict": weights}


def wrapped_weights(rng: random.Random, weights: Mapping[str, Tensor]) -> dict:
    """The same weights, as other people's programs save them."""
    checkpoint = dict(weights)
    if rng.random() < 0.3:
        dtype = rng.choice((torch.float64, torch.float32))
        checkpoint = {k: x.to(dtype) if x.is_floating_point() else x for k, x in weights.items()}
    for _ in range(rng.randint(0, 2)):
        prefix = rng.choice(("module.", "_orig_mod.", "module._orig_mod."))
        checkpoint = {f"{prefix}{name}": tensor for name, tensor in checkpoint.items()}
    for _ in range(rng.randint(0, 3)):
        key = rng.choice(("state_dict", "model", "state_dict_ema", "model_ema", "teacher"))
        checkpoint = {key: checkpoint}
        if rng.random() < 0.5:
            checkpoint |= {"epoch": 3, "args": {"lr": 0.1}, "optimizer": {"state": {}}}
    return checkpoint


def damage(rng: random.Random, content: bytes) -> bytes:
    """A file as a full disk, a broken download or a bad disk leaves it."""
    content = bytearray(content)
    place = rng.randrange(len(content))
    kind = rng.choice(("cut", "flip", "zeros", "insert", "empty", "head"))
    if kind == "cut":
        del content[place:]
    elif kind == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif kind == "insert":
        content[place:place] = rng.randbytes(rng.randint(1, 64))
    elif kind == "empty":
        content.clear()
    else:
        del content[:place]
    return bytes(content)
