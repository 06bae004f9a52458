"""Equivalent forms of the two products inside Slide Attention.

All tensors are channels-last, (B, H, W, num_heads, head_dim). With the kernel W[c, p, o], the bias
b[c, p] and zeros outside the image, the neighbour that tap p shows to pixel x is

    x~_p(x)[c] = sum_o W[c, p, o] x(x + o)[c] + b[c, p]

A form is a pair of functions: ``score`` gives q(x) . k~_p(x) for every tap, ``aggregate`` gives
sum_p a_p(x) v~_p(x). The three forms of the paper differ in how they lay the neighbours out, and
all of them hold K*K copies of key and value; the fourth, ``tap``, reorders the sums and holds none.
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
    "im2col": _laid_out(neighbours_by_im2col),
    "shift": _laid_out(neighbours_by_shift),
    "conv": _laid_out(neighbours_by_conv),
    "tap": Form(score_by_tap, aggregate_by_tap),
}
