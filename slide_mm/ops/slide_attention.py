"""Slide Attention as a function of tensors."""

from torch import Tensor

from slide_mm.ops import operator, reference
from slide_mm.ops.arguments import check_numbers, check_tokens, check_weights
from slide_mm.ops.backends import TABLE, choose

_LAYOUT = "(B, H, W, num_heads, head_dim)"
_PACKED_LAYOUT = "(B, H, W, 3, num_heads, head_dim)"


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
        backend: One of :data:`slide_mm.ops.BACKENDS`. All give the same result. ``'auto'`` takes
            the first that can: ``'compiled'``, for float32 on a CPU; ``'triton'``, on a GPU; else
            ``'chunked'``; and ``'tap'``, of which PyTorch sees every operation, for dropout and
            exporting.
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
        backend: See :func:`slide_attention`.
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
    weights = _cast([kernel, bias, position_bias], query)
    return reference.weigh(query, key, *weights, _scale(scale, query), reference.FORMS["tap"])


def _attend(
    inputs: list[Tensor],
    weights: list[Tensor | None],
    scale: float | None,
    backend: str,
    dropout_p: float,
) -> Tensor:
    check_numbers(scale, dropout_p)
    scale = _scale(scale, inputs[0])
    given = [tensor for tensor in (*inputs, *weights) if tensor is not None]
    backend = choose(backend, given, weights[0].shape[-1], dropout_p)
    weights = _cast(weights, inputs[0])
    if TABLE[backend].backward is not None:
        return operator.attend(inputs, *weights, scale, backend)
    query, key, value = inputs if len(inputs) == 3 else inputs[0].unbind(3)
    return TABLE[backend].forward(query, key, value, *weights, scale, dropout_p)


def _scale(scale: float | None, query: Tensor) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def _cast(weights: list[Tensor | None], like: Tensor) -> list[Tensor | None]:
    """Weights in the type of the tokens, as autocast makes those of lower precision."""
    return [weight if weight is None else weight.to(like.dtype) for weight in weights]
