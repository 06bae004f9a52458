"""What Slide Attention takes, told in one line where it is something else.

Nothing here looks at the numbers of a tensor: a GPU need not be waited for.
"""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tokens(layout: str, **tokens: Tensor) -> None:
    """Refuse tokens by name that are no floating-point tensors, or don't fit together.

    Args:
        layout: Their dimensions, the last two of which are heads and channels.
        **tokens: All of one shape and type, on one device.

    Raises:
        ValueError: If they are not.
    """
    like = next(iter(tokens.values()))
    for name, tensor in tokens.items():
        _check_tensor(name, tensor)
        if tensor.ndim != layout.count(",") + 1 or 0 in tensor.shape[-2:]:
            shape = tuple(tensor.shape)
            raise ValueError(f"{name} has shape {shape}: give {layout}, heads and channels not 0")
        if tensor.dtype != like.dtype or tensor.device != like.device:
            raise ValueError(
                f"{name} is of {tensor.dtype} on {tensor.device}: give query, key and value of one "
                f"type on one device, here {like.dtype} on {like.device}"
            )
        _check_shape(name, tensor, "the shape of query", like.shape)


def check_weights(
    tokens: Tensor, kernel: Tensor, bias: Tensor | None, position_bias: Tensor | None
) -> None:
    """Refuse weights that don't fit to tokens, which are sound.

    Raises:
        ValueError: If they are no floating-point tensors, on another device or of another shape.
    """
    for name, tensor in (("kernel", kernel), ("bias", bias), ("position_bias", position_bias)):
        if tensor is None and name != "kernel":
            continue
        _check_tensor(name, tensor)
        if tensor.device != tokens.device:
            raise ValueError(
                f"{name} is on {tensor.device}: give it on {tokens.device}, where the tokens are"
            )
    kernel_size = kernel.shape[-1] if kernel.ndim else 0
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel has K = {kernel_size}: give an odd K, so that it has a centre")
    num_heads, head_dim = tokens.shape[-2:]
    taps = kernel_size**2
    _check_shape(
        "kernel", kernel, "(head_dim, K*K, K, K)", (head_dim, taps, kernel_size, kernel_size)
    )
    _check_shape("bias", bias, "(head_dim, K*K)", (head_dim, taps))
    _check_shape("position_bias", position_bias, "(num_heads, K*K)", (num_heads, taps))


def check_numbers(scale: float | None, dropout_p: float) -> None:
    """Refuse a scale that is not finite, and a dropout that is no probability below 1.

    Raises:
        ValueError: If it is so.
    """
    if scale is not None and not (isinstance(scale, Real) and abs(scale) < float("inf")):
        raise ValueError(f"scale is {_show(scale)}: give a finite number, or None")
    if not (isinstance(dropout_p, Real) and 0 <= dropout_p < 1):
        raise ValueError(f"dropout_p is {_show(dropout_p)}: give a number from 0 to less than 1")


def _check_shape(name: str, tensor: Tensor | None, layout: str, shape: tuple[int, ...]) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}: give {tuple(shape)}, which is {layout}"
        )


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is of type {type(tensor).__name__}: give a tensor")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name} is of {tensor.dtype}: give float32, bfloat16, float16 or float64")


def _show(value: Any) -> str:
    return " ".join(repr(value).split())
