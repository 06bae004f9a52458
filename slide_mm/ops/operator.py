"""Slide Attention as one operator of PyTorch, forward and backward.

It is registered with PyTorch's dispatcher key by key, which all versions know; ``torch.library``'s
own ``custom_op`` needs 2.5.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from slide_mm.ops.backends import TABLE
from slide_mm.ops.compat import register_flop_formula
from slide_mm.ops.memory import new_empty


def attend(
    inputs: list[Tensor],
    kernel: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
    backend: str,
) -> Tensor:
    """Compute Slide Attention by a backend that has a backward.

    Args:
        inputs: Query, key and value, each (B, H, W, num_heads, head_dim), in any memory layout; or
            one (B, H, W, 3, num_heads, head_dim) that holds all three, and so will the gradient.
        kernel: (head_dim, K*K, K, K).
        bias: (head_dim, K*K) or None.
        position_bias: (num_heads, K*K) or None.
        scale: Factor of the logits.
        backend: Name in :data:`slide_mm.ops.backends.TABLE`.

    Returns:
        (B, H, W, num_heads, head_dim), contiguous.
    """
    kernel = kernel.flatten(2)
    head_dim, taps = kernel.shape[:2]
    num_heads = inputs[0].shape[-2]
    bias = kernel.new_zeros(head_dim, taps) if bias is None else bias
    position_bias = kernel.new_zeros(num_heads, taps) if position_bias is None else position_bias
    tensors = inputs, kernel, bias, position_bias
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *tensors[1:]))
    return torch.ops.slide_mm.slide_attention(*tensors, scale, backend, trains)[0]


def _forward(
    inputs: Sequence[Tensor],
    kernel: Tensor,
    bias: Tensor,
    position_bias: Tensor,
    scale: float,
    backend: str,
    trains: bool,
) -> tuple[Tensor, Tensor]:
    query, key, value = _unpack(inputs)
    kept = _keep(backend, query, kernel, trains)
    with torch.autocast(query.device.type, enabled=False):
        output = TABLE[backend].forward(
            query, key, value, kernel, bias, position_bias, scale, kept if trains else None
        )
    return output, kept


def _forward_shapes(inputs, kernel, bias, position_bias, scale, backend, trains):
    query = _unpack(inputs)[0]
    return query.new_empty(query.shape), _keep(backend, query, kernel, trains)


def _backward(
    inputs: Sequence[Tensor],
    kernel: Tensor,
    bias: Tensor,
    position_bias: Tensor,
    scale: float,
    backend: str,
    kept: Tensor,
    output_grad: Tensor,
) -> list[Tensor]:
    gradients = [new_empty(x, x.shape) for x in inputs]
    weights = kernel, bias, position_bias
    with torch.autocast(output_grad.device.type, enabled=False):
        weight_gradients = TABLE[backend].backward(
            *_unpack(inputs), *weights, scale, kept, output_grad, _unpack(gradients)
        )
    return gradients + [g.to(w.dtype) for g, w in zip(weight_gradients, weights, strict=True)]


def _backward_shapes(inputs, kernel, bias, position_bias, *_):
    return [x.new_empty(x.shape) for x in (*inputs, kernel, bias, position_bias)]


class _Attention(torch.autograd.Function):
    """The operator with gradients. Autograd sees no tensors in lists."""

    @staticmethod
    def forward(ctx, options: tuple, *tensors: Tensor):
        *inputs, kernel, bias, position_bias = tensors
        with torch._C._AutoDispatchBelowAutograd():
            output, kept = torch.ops.slide_mm.slide_attention(
                inputs, kernel, bias, position_bias, *options
            )
        ctx.options = options[:2]
        ctx.save_for_backward(*tensors, kept)
        ctx.mark_non_differentiable(kept)
        return output, kept

    @staticmethod
    def backward(ctx, output_grad: Tensor, _):
        *inputs, kernel, bias, position_bias, kept = ctx.saved_tensors
        gradients = torch.ops.slide_mm.slide_attention_backward(
            inputs, kernel, bias, position_bias, *ctx.options, kept, output_grad
        )
        return None, *gradients


class _Gradients(torch.autograd.Function):
    """The operator's gradients, which have none."""

    @staticmethod
    def forward(ctx, options: tuple, *tensors: Tensor):
        *inputs, kernel, bias, position_bias, kept, output_grad = tensors
        with torch._C._AutoDispatchBelowAutograd():
            gradients = torch.ops.slide_mm.slide_attention_backward(
                inputs, kernel, bias, position_bias, *options, kept, output_grad
            )
        return tuple(gradients)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("Slide Attention has no second derivative here: use backend='tap'")


def _forward_with_autograd(inputs, kernel, bias, position_bias, *options):
    return _Attention.apply(options, *inputs, kernel, bias, position_bias)


def _backward_with_autograd(inputs, kernel, bias, position_bias, scale, backend, *tensors):
    options = scale, backend
    return list(_Gradients.apply(options, *inputs, kernel, bias, position_bias, *tensors))


def _refuse_vmap(*_) -> None:
    raise RuntimeError("Slide Attention can't be vmapped here: use backend='tap'")


# The operators live as long as this object.
_LIBRARY = torch.library.Library("slide_mm", "FRAGMENT")


def _register(schema: str, kernels: dict[str, Callable]) -> None:
    """Define an operator, with a function for each of the dispatcher's keys."""
    _LIBRARY.define(schema)
    for key, kernel in kernels.items():
        _LIBRARY.impl(schema.partition("(")[0], kernel, key)


_register(
    "slide_attention(Tensor[] inputs, Tensor kernel, Tensor bias, Tensor position_bias, "
    "float scale, str backend, bool trains) -> (Tensor, Tensor)",
    {
        "CompositeExplicitAutograd": _forward,
        "Meta": _forward_shapes,
        "Autograd": _forward_with_autograd,
        "FuncTorchBatched": _refuse_vmap,
    },
)
_register(
    "slide_attention_backward(Tensor[] inputs, Tensor kernel, Tensor bias, Tensor position_bias, "
    "float scale, str backend, Tensor kept, Tensor output_grad) -> Tensor[]",
    {
        "CompositeExplicitAutograd": _backward,
        "Meta": _backward_shapes,
        "Autograd": _backward_with_autograd,
        "FuncTorchBatched": _refuse_vmap,
    },
)


@register_flop_formula(torch.ops.slide_mm.slide_attention)
def _forward_flops(shapes: Sequence[torch.Size], kernel_shape: torch.Size, *_: Any, **__: Any):
    return 2 * _count_side(shapes, kernel_shape)


@register_flop_formula(torch.ops.slide_mm.slide_attention_backward)
def _backward_flops(shapes: Sequence[torch.Size], kernel_shape: torch.Size, *_: Any, **__: Any):
    return 5 * _count_side(shapes, kernel_shape)


def _count_side(shapes: Sequence[torch.Size], kernel_shape: torch.Size) -> int:
    """Operations, two a multiply-add, for the products with K*K neighbours and their mixing."""
    elements = math.prod(shapes[0]) // (3 if len(shapes) == 1 else 1)
    taps = kernel_shape[1]
    return 2 * elements * (taps + taps**2)


def _unpack(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors[0].unbind(3) if len(tensors) == 1 else tensors


def _keep(backend: str, query: Tensor, kernel: Tensor, trains: bool) -> Tensor:
    return TABLE[backend].keep(query, kernel) if trains else query.new_empty(0)
