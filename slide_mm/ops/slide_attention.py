"""Slide Attention as a function of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from slide_mm.ops import cpu_kernel, fused
from slide_mm.ops.arguments import check_numbers, check_tokens, check_weights
from slide_mm.ops.compat import is_exporting
from slide_mm.ops.forms import FORMS, Form

FUSED = ("compiled", "chunked")
_LAYOUT = "(B, H, W, num_heads, head_dim)"
_PACKED_LAYOUT = "(B, H, W, 3, num_heads, head_dim)"
BACKENDS = ("auto", *FUSED, *FORMS)


def slide_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    dropout_p: float = 0.0,
) -> Tensor:
    """Let every pixel attend to the K*K deformed neighbours around it.

    Slide Attention (Slide-Transformer, CVPR 2023, section 4; arXiv 2304.04237). With
    ``k~_p(x)[c] = sum_o kernel[c, p, o] key(x + o)[c] + bias[c, p]``, and ``v~_p`` likewise:

        logit_p(x) = sum_c scale * query(x)[c] * (k~_p(x)[c] + position_bias[head, p])
        out(x) = sum_p softmax_p(logit(x)) v~_p(x)

    As in the authors' code, the position bias is added to the key, in every channel, and not to
    the logit. Outside the image key and value are zero; such taps take part in the softmax.

    Args:
        query: (B, H, W, num_heads, head_dim). Any strides, any batch size, also 0.
        key: Same shape as the query.
        value: Same shape as the query.
        kernel: Depth-wise kernels (head_dim, K*K, K, K), K odd, shared by heads, key and value.
            For plain local attention ``kernel[c, p]`` is 1 at tap p and 0 elsewhere.
        bias: (head_dim, K*K), or None for no bias.
        position_bias: One number a head and tap, (num_heads, K*K), or None for no bias.
        scale: Factor of the query; ``head_dim ** -0.5`` when None.
        backend: One of ``BACKENDS``. All give the same result. ``'auto'`` takes ``'compiled'``, for
            float32 on a CPU, where it can; else ``'chunked'``; and ``'tap'``, of which PyTorch sees
            every operation, for dropout, tracing and exporting.
        dropout_p: Probability of dropping an attention weight.

    Returns:
        (B, H, W, num_heads, head_dim), in the dtype of the query.

    Raises:
        ValueError: If an argument is of another kind or out of its range, the shapes, types or
            devices do not fit together, or the backend is unknown or can't take them.
    """
    check_tokens(_LAYOUT, query=query, key=key, value=value)
    check_weights(query, kernel, bias, position_bias)
    inputs, weights = [query, key, value], [kernel, bias, position_bias]
    return _attend(inputs, weights, scale, backend, dropout_p)


def slide_attention_qkvpacked(
    qkv: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
    dropout_p: float = 0.0,
) -> Tensor:
    """:func:`slide_attention` on one tensor that holds query, key and value.

    It saves a copy in backward, as the gradient is one tensor too.

    Args:
        qkv: (B, H, W, 3, num_heads, head_dim). Any strides, any batch size, also 0.
        kernel: See :func:`slide_attention`; so are all other arguments.
        bias: (head_dim, K*K) or None.
        position_bias: (num_heads, K*K) or None.
        scale: Factor of the query; ``head_dim ** -0.5`` when None.
        backend: One of ``BACKENDS``.
        dropout_p: Probability of dropping an attention weight.

    Returns:
        (B, H, W, num_heads, head_dim), in the dtype of ``qkv``.

    Raises:
        ValueError: As :func:`slide_attention`.
    """
    check_tokens(_PACKED_LAYOUT, qkv=qkv)
    if qkv.shape[3] != 3:
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}: give {_PACKED_LAYOUT}")
    check_weights(qkv, kernel, bias, position_bias)
    return _attend([qkv], [kernel, bias, position_bias], scale, backend, dropout_p)


def slide_attention_weights(
    query: Tensor,
    key: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """The attention weights of :func:`slide_attention`, whose arguments these are.

    Returns:
        (B, H, W, num_heads, K*K), summing to 1 over the taps.

    Raises:
        ValueError: As :func:`slide_attention`.
    """
    check_tokens(_LAYOUT, query=query, key=key)
    check_weights(query, kernel, bias, position_bias)
    check_numbers(scale, 0.0)
    weights = _cast([kernel, bias, position_bias], query.dtype)
    return _weigh(query, key, *weights, scale, backend)


def _weigh(
    query: Tensor,
    key: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float | None,
    backend: str,
) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = query * scale
    logits = _form(backend).score(query, key, kernel, bias)
    if position_bias is not None:
        logits = logits + query.sum(-1, keepdim=True) * position_bias
    return logits.softmax(-1)


def _attend(
    inputs: list[Tensor],
    weights: list[Tensor | None],
    scale: float | None,
    backend: str,
    dropout_p: float,
) -> Tensor:
    check_numbers(scale, dropout_p)
    scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
    backend = _choose(backend, inputs, weights, dropout_p)
    if backend in FUSED:
        return fused.slide_attention(inputs, *weights, scale, backend)
    weights = _cast(weights, inputs[0].dtype)
    query, key, value = inputs if len(inputs) == 3 else inputs[0].unbind(3)
    attention = _weigh(query, key, *weights, scale, backend)
    if dropout_p > 0:
        attention = F.dropout(attention, dropout_p)
    attention = attention.to(value.dtype)
    return _form(backend).aggregate(attention, value, *weights[:2]).to(query.dtype)


def _cast(weights: list[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Weights in the type of the tokens, as autocast makes those of lower precision."""
    return [weight if weight is None else weight.to(dtype) for weight in weights]


def _choose(
    backend: str, inputs: list[Tensor], weights: list[Tensor | None], dropout_p: float
) -> str:
    """Settle on a fused backend or on a form."""
    if backend not in ("auto", *FUSED):
        return backend
    if backend == "auto" and is_exporting():
        return "tap"  # Whoever reads an exported program doesn't know our operator.
    given = [tensor for tensor in (*inputs, *weights) if tensor is not None]
    kernel_size = weights[0].shape[-1]
    problems = {
        name: _why_not(name, given, kernel_size, dropout_p)
        for name in FUSED
        if backend in ("auto", name)
    }
    able = [name for name, problem in problems.items() if problem is None]
    if not able and backend != "auto":
        raise ValueError(f"backend {backend!r} {problems[backend]}: choose 'auto'")
    return able[0] if able else "tap"


def _why_not(
    backend: str, tensors: Sequence[Tensor], kernel_size: int, dropout_p: float
) -> str | None:
    """Why a fused backend can't take this call, in a few words; None when it can."""
    if dropout_p > 0:
        return "has no dropout"
    if torch.jit.is_tracing():
        return "cannot be traced"
    return cpu_kernel.why_not(tensors, kernel_size) if backend == "compiled" else None


def _form(backend: str) -> Form:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")
    return FORMS["tap" if backend in ("auto", *FUSED) else backend]
