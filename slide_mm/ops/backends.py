"""The table of backends: every way to compute Slide Attention, and which one runs when."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from slide_mm.ops import chunked, compat, cpu_kernel, gpu_kernel, reference
from slide_mm.ops.memory import new_empty


def _takes_every_call(tensors: Sequence[Tensor], kernel_size: int) -> None:
    """Give no reason."""


class Backend(NamedTuple):
    """One way to compute Slide Attention.

    With a ``backward``, PyTorch sees one operator, and ``forward`` and ``backward`` take tensors
    alone: query, key and value (B, H, W, num_heads, head_dim) in any memory layout, kernel
    (head_dim, K*K, K*K), bias (head_dim, K*K) and position_bias (num_heads, K*K).

    Attributes:
        forward: ``(query, key, value, kernel, bias, position_bias, scale, kept)``, where it fills
            ``kept`` for backward, if that is not None. Without a ``backward``, PyTorch sees every
            operation, the arguments are those of :func:`slide_mm.ops.reference.attend`, and
            ``dropout_p`` takes the place of ``kept``.
        backward: ``(query, key, value, kernel, bias, position_bias, scale, kept, output_grad,
            gradients)``. Writes those of query, key and value into ``gradients``, which are empty
            and may be strided, all alike; returns those of kernel, bias and position_bias, of any
            float type.
        keep: ``(query, kernel)`` to an empty tensor for what backward needs beside the inputs, of
            any shape and type. They may be meta tensors.
        why_not: ``(tensors, kernel_size)`` to why it can't take a call, in a few words that follow
            its name, or to None.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    keep: Callable[[Tensor, Tensor], Tensor] | None = None
    why_not: Callable[[Sequence[Tensor], int], str | None] = _takes_every_call


def keep_attention(query: Tensor, kernel: Tensor) -> Tensor:
    """Memory for the attention weights."""
    return new_empty(query, [query[..., 0].numel() * kernel.shape[1]])


# 'auto' is the first that can take a call.
TABLE = {
    "compiled": Backend(
        cpu_kernel.forward, cpu_kernel.backward, keep_attention, cpu_kernel.why_not
    ),
    "triton": Backend(gpu_kernel.forward, gpu_kernel.backward, keep_attention, gpu_kernel.why_not),
    "chunked": Backend(chunked.forward, chunked.backward, keep_attention),
    **{
        name: Backend(partial(reference.attend, form=form))
        for name, form in reference.FORMS.items()
    },
}
BACKENDS = ("auto", *TABLE)


def choose(name: str, tensors: Sequence[Tensor], kernel_size: int, dropout_p: float) -> str:
    """Settle on a backend for a call.

    Args:
        name: One of ``BACKENDS``.
        tensors: All that the call is given.
        kernel_size: Side K of the neighbourhood.
        dropout_p: Probability of dropping an attention weight.

    Raises:
        ValueError: If there is none of that name, or it can't take the call.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}: choose one of {', '.join(BACKENDS)}")
    for candidate in TABLE if name == "auto" else [name]:
        reason = why_not(candidate, tensors, kernel_size, dropout_p)
        if reason is None:
            return candidate
    raise ValueError(f"backend {name!r} {reason}: choose 'auto'")


def why_not(
    name: str, tensors: Sequence[Tensor], kernel_size: int, dropout_p: float = 0.0
) -> str | None:
    """Why a backend can't take a call, in a few words that follow its name; None if it can."""
    backend = TABLE[name]
    if backend.backward is not None and dropout_p > 0:
        return "has no dropout"
    if backend.backward is not None and compat.is_recorded():
        return "is one operator, which readers of exported programs don't know"
    return backend.why_not(tensors, kernel_size)
