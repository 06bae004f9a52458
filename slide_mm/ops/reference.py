"""Equivalent forms of Slide Attention, which backends, benchmarks and tests are held against.

``definition`` is the obviously right one, ``published`` what the authors train. The others lay out
or reorder the two products inside. All tensors are channels-last, (B, H, W, num_heads, head_dim).
With the kernel W[c, p, o], the bias b[c, p] and zeros outside the image, the neighbour that tap p
shows to pixel x is

    x~_p(x)[c] = sum_o W[c, p, o] x(x + o)[c] + b[c, p]

A ``Form`` is a pair of functions: ``score`` gives q(x) . k~_p(x) for every tap, ``aggregate`` gives
sum_p a_p(x) v~_p(x). The paper's three, ``im2col``, ``shift`` and ``conv``, hold K*K copies of key
and value; the fourth, ``tap``, reorders the sums and holds none.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Form(NamedTuple):
    """One way to compute the two products.

    Attributes:
        score: ``(query, key, kernel, bias) -> (B, H, W, num_heads, K*K)``.
        aggregate: ``(attention, value, kernel, bias) -> (B, H, W, num_heads, head_dim)``.
    """

    score: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    aggregate: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def shifted_views(x: Tensor, kernel_size: int) -> Iterator[Tensor]:
    """Yield x(x + o) for the taps o in row-major order, as views of one padded copy."""
    height, width = x.shape[1:3]
    radius = kernel_size // 2
    padded = F.pad(x, (0, 0, 0, 0, radius, radius, radius, radius))
    for row in range(kernel_size):
        for column in range(kernel_size):
            yield padded[:, row : row + height, column : column + width]


def _combine(copies: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Mix the K*K shifted copies (..., head_dim, K*K) by the learned kernel."""
    mixed = torch.einsum("bhwnco,cpo->bhwncp", copies, kernel.flatten(2))
    return mixed if bias is None else mixed + bias


def neighbours_by_im2col(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Column by column: the K x K patch of every pixel, by unfold."""
    batch, height, width, num_heads, head_dim = x.shape
    kernel_size = kernel.shape[-1]
    image = x.permute(0, 3, 4, 1, 2).reshape(batch, num_heads * head_dim, height, width)
    columns = F.unfold(image, kernel_size, padding=kernel_size // 2)
    copies = columns.view(batch, num_heads, head_dim, kernel_size**2, height, width)
    return _combine(copies.permute(0, 4, 5, 1, 2, 3), kernel, bias)


def neighbours_by_shift(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Row by row: one shifted copy of the whole map for every tap."""
    return _combine(torch.stack(list(shifted_views(x, kernel.shape[-1])), dim=-1), kernel, bias)


def neighbours_by_conv(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """One depth-wise convolution with K*K outputs a channel."""
    batch, height, width, num_heads, head_dim = x.shape
    kernel_size = kernel.shape[-1]
    image = x.permute(0, 3, 4, 1, 2).flatten(0, 1)
    weight = kernel.flatten(0, 1).unsqueeze(1)
    weight_bias = None if bias is None else bias.flatten()
    neighbours = F.conv2d(image, weight, weight_bias, padding=kernel_size // 2, groups=head_dim)
    neighbours = neighbours.view(batch, num_heads, head_dim, kernel_size**2, height, width)
    return neighbours.permute(0, 4, 5, 1, 2, 3)


def _score_neighbours(
    query: Tensor,
    key: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    neighbours: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> Tensor:
    return (query.unsqueeze(-1) * neighbours(key, kernel, bias)).sum(-2)


def _aggregate_neighbours(
    attention: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    neighbours: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> Tensor:
    return (attention.unsqueeze(-2) * neighbours(value, kernel, bias)).sum(-1)


def score_by_tap(query: Tensor, key: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """One elementwise product and one (pixels * heads, d) x (d, K*K) matrix product a tap."""
    scores = 0 if bias is None else query @ bias
    tap_kernels = kernel.flatten(2).unbind(-1)
    for shifted, tap_kernel in zip(shifted_views(key, kernel.shape[-1]), tap_kernels, strict=True):
        scores = scores + (query * shifted) @ tap_kernel
    return scores


def aggregate_by_tap(
    attention: Tensor, value: Tensor, kernel: Tensor, bias: Tensor | None
) -> Tensor:
    """The transpose of :func:`score_by_tap`."""
    output = 0 if bias is None else attention @ bias.T
    tap_kernels = kernel.flatten(2).unbind(-1)
    for shifted, tap_kernel in zip(
        shifted_views(value, kernel.shape[-1]), tap_kernels, strict=True
    ):
        output = output + shifted * (attention @ tap_kernel.T)
    return output


def _laid_out(neighbours: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Form:
    return Form(
        partial(_score_neighbours, neighbours=neighbours),
        partial(_aggregate_neighbours, neighbours=neighbours),
    )


FORMS = {
    "tap": Form(score_by_tap, aggregate_by_tap),
    "conv": _laid_out(neighbours_by_conv),
    "shift": _laid_out(neighbours_by_shift),
    "im2col": _laid_out(neighbours_by_im2col),
}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
    dropout_p: float,
    form: Form,
) -> Tensor:
    """Slide Attention by a form; see :func:`slide_mm.ops.slide_attention`."""
    attention = weigh(query, key, kernel, bias, position_bias, scale, form)
    if dropout_p > 0:
        attention = F.dropout(attention, dropout_p)
    return form.aggregate(attention.to(value.dtype), value, kernel, bias).to(query.dtype)


def weigh(
    query: Tensor,
    key: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
    form: Form,
) -> Tensor:
    """Attention weights (B, H, W, num_heads, K*K) by a form."""
    query = query * scale
    logits = form.score(query, key, kernel, bias)
    if position_bias is not None:
        logits = logits + query.sum(-1, keepdim=True) * position_bias
    return logits.softmax(-1)


def definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Slide Attention as it is defined, pixel by pixel, in float64: slow, and obviously right.

    See :func:`slide_mm.ops.slide_attention`, whose arguments these are.
    """
    query, key, value, kernel = (x.double() for x in (query, key, value, kernel))
    num_heads, head_dim = query.shape[3:]
    taps, kernel_size = kernel.shape[1:3]
    radius = kernel_size // 2
    bias = kernel.new_zeros(head_dim, taps) if bias is None else bias.double()
    if position_bias is None:
        position_bias = kernel.new_zeros(num_heads, taps)
    scale = head_dim**-0.5 if scale is None else scale
    key, value = (F.pad(x, (0, 0, 0, 0, radius, radius, radius, radius)) for x in (key, value))

    def neighbours(x: Tensor, row: int, column: int) -> Tensor:
        patch = x[:, row : row + kernel_size, column : column + kernel_size]
        return torch.einsum("cpij,bijnc->bncp", kernel, patch) + bias

    def pixel(row: int, column: int) -> Tensor:
        keys = neighbours(key, row, column) + position_bias.double()[:, None]
        logits = (scale * query[:, row, column, :, :, None] * keys).sum(2)
        return (logits.softmax(-1)[:, :, None] * neighbours(value, row, column)).sum(-1)

    height, width = query.shape[1:3]
    rows = (torch.stack([pixel(y, x) for x in range(width)], 1) for y in range(height))
    return torch.stack(list(rows), 1)


def published(
    qkv: Tensor, shift: Tensor, deformed_kernel: Tensor, bias: Tensor, position_bias: Tensor
) -> Tensor:
    """Slide Attention as the paper formulates it: two depth-wise convolutions for key and value.

    Slide-Transformer, CVPR 2023, arXiv 2304.04237, section 4.3, with the learned path beside the
    fixed shifts and K*K neighbours laid out in memory.

    Args:
        qkv: (B, H, W, 3, num_heads, head_dim).
        shift: The fixed shifts as depth-wise kernels, (head_dim, K*K, K, K).
        deformed_kernel: The learned path, of the same shape.
        bias: Its bias, (head_dim, K*K).
        position_bias: (num_heads, K*K).

    Returns:
        (B, H, W, num_heads, head_dim).
    """
    batch, height, width, _, num_heads, head_dim = qkv.shape
    # One step to channels first, as published; runtimes are slow with heads and channels at once.
    image = qkv.reshape(batch, height, width, 3 * num_heads * head_dim).permute(0, 3, 1, 2)
    query, key, value = image.reshape(batch, 3, num_heads, head_dim, height, width).unbind(1)
    padding = shift.shape[-1] // 2

    def neighbours(x: Tensor) -> Tensor:
        convolve = partial(F.conv2d, x.flatten(0, 1), padding=padding, groups=head_dim)
        fixed = convolve(shift.flatten(0, 1).unsqueeze(1))
        learned = convolve(deformed_kernel.flatten(0, 1).unsqueeze(1), bias.flatten())
        return (fixed + learned).view(batch, num_heads, head_dim, -1, height, width)

    query = (head_dim**-0.5 * query).unsqueeze(3)
    keys = neighbours(key) + position_bias[:, None, :, None, None]
    attention = (query * keys).sum(2, keepdim=True).softmax(3)
    heads = (attention * neighbours(value)).sum(3)
    image = heads.reshape(batch, num_heads * head_dim, height, width).permute(0, 2, 3, 1)
    return image.reshape(batch, height, width, num_heads, head_dim)
