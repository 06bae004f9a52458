"""Slide Attention as a function of tensors."""

from torch import Tensor
from torch.nn import functional as F

from slide_mm.ops import cpu_kernel
from slide_mm.ops.forms import FORMS, Form

BACKENDS = ("auto", "compiled", *FORMS)


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
            float32 on a CPU, where it can, and ``'tap'`` elsewhere.
        dropout_p: Probability of dropping an attention weight.

    Returns:
        (B, H, W, num_heads, head_dim), in the dtype of the query.

    Raises:
        ValueError: If the shapes do not fit together, or the backend is unknown or can't take them.
    """
    _check_shapes(query, key, kernel, bias, position_bias)
    _check_shape("value", value, "the shape of key", key.shape)
    tensors = [query, key, value, kernel, bias, position_bias]
    backend = _choose(backend, tensors, dropout_p)
    if backend == "compiled":
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return cpu_kernel.slide_attention(*tensors, scale)
    attention = slide_attention_weights(query, key, kernel, bias, position_bias, scale, backend)
    if dropout_p > 0:
        attention = F.dropout(attention, dropout_p)
    attention = attention.to(value.dtype)
    return _form(backend).aggregate(attention, value, kernel, bias).to(query.dtype)


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
        ValueError: If the shapes do not fit together or the backend is unknown.
    """
    _check_shapes(query, key, kernel, bias, position_bias)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = query * scale
    logits = _form(backend).score(query, key, kernel, bias)
    if position_bias is not None:
        logits = logits + query.sum(-1, keepdim=True) * position_bias
    return logits.softmax(-1)


def _choose(backend: str, tensors: list[Tensor | None], dropout_p: float) -> str:
    """Settle on a form, or on ``'compiled'``."""
    if backend not in ("auto", "compiled"):
        return backend
    given = [tensor for tensor in tensors if tensor is not None]
    problem = "has no dropout" if dropout_p > 0 else cpu_kernel.why_not(given, given[3].shape[-1])
    if problem is None:
        return "compiled"
    if backend == "compiled":
        raise ValueError(f"backend 'compiled' {problem}: choose 'auto'")
    return "tap"


def _form(backend: str) -> Form:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")
    return FORMS["tap" if backend in ("auto", "compiled") else backend]


def _check_shapes(
    query: Tensor, key: Tensor, kernel: Tensor, bias: Tensor | None, position_bias: Tensor | None
) -> None:
    if query.ndim != 5:
        raise ValueError(
            f"query has shape {tuple(query.shape)}: give (B, H, W, num_heads, head_dim)"
        )
    num_heads, head_dim = query.shape[3:]
    kernel_size = kernel.shape[-1]
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel has K = {kernel_size}: give an odd K, so that it has a centre")
    taps = kernel_size**2
    _check_shape("key", key, "the shape of query", query.shape)
    _check_shape(
        "kernel", kernel, "(head_dim, K*K, K, K)", (head_dim, taps, kernel_size, kernel_size)
    )
    _check_shape("bias", bias, "(head_dim, K*K)", (head_dim, taps))
    _check_shape("position_bias", position_bias, "(num_heads, K*K)", (num_heads, taps))


def _check_shape(name: str, tensor: Tensor | None, meaning: str, shape: tuple[int, ...]) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}: give {meaning}, here {tuple(shape)}"
        )
