"""The slow, obviously right form that all others are held against."""

import torch
from torch import Tensor
from torch.nn import functional as F


def judge(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Slide Attention as its definition reads, pixel by pixel, in float64."""
    query, key, value, kernel = (x.double() for x in (query, key, value, kernel))
    num_heads, head_dim = query.shape[3:]
    taps, size = kernel.shape[1], kernel.shape[2]
    radius = size // 2
    bias = torch.zeros(head_dim, taps) if bias is None else bias
    position_bias = torch.zeros(num_heads, taps) if position_bias is None else position_bias
    scale = head_dim**-0.5 if scale is None else scale
    key, value = (F.pad(x, (0, 0, 0, 0, radius, radius, radius, radius)) for x in (key, value))
    rows = []
    for y in range(query.shape[1]):
        pixels = []
        for x in range(query.shape[2]):
            around = slice(y, y + size), slice(x, x + size)
            keys = (
                torch.einsum("cpij,bijnc->bncp", kernel, key[(slice(None), *around)])
                + bias.double()
            )
            values = (
                torch.einsum("cpij,bijnc->bncp", kernel, value[(slice(None), *around)])
                + bias.double()
            )
            keys = keys + position_bias.double()[:, None]
            logits = (scale * query[:, y, x, :, :, None] * keys).sum(2)
            pixels.append((logits.softmax(-1)[:, :, None] * values).sum(-1))
        rows.append(torch.stack(pixels, 1))
    return torch.stack(rows, 1)
