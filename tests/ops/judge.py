"""The slow, obviously right form that all others are held against."""

import torch
from torch import Tensor


def judge(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Slide Attention as a plain loop over pixels, in float64."""
    query, key, value, kernel = (x.double() for x in (query, key, value, kernel))
    batch, height, width, num_heads, head_dim = query.shape
    taps, size = kernel.shape[1], kernel.shape[2]
    radius = size // 2
    bias = torch.zeros(head_dim, taps) if bias is None else bias
    position_bias = torch.zeros(num_heads, taps) if position_bias is None else position_bias
    bias, position_bias = bias.double(), position_bias.double()
    scale = head_dim**-0.5 if scale is None else scale
    out = torch.zeros_like(query)
    for y in range(height):
        for x in range(width):
            keys = bias.expand(batch, num_heads, head_dim, taps).clone()
            values = keys.clone()
            for row in range(size):
                for column in range(size):
                    ny, nx = y + row - radius, x + column - radius
                    if 0 <= ny < height and 0 <= nx < width:
                        keys += key[:, ny, nx, :, :, None] * kernel[:, :, row, column]
                        values += value[:, ny, nx, :, :, None] * kernel[:, :, row, column]
            keys += position_bias[:, None, :]
            logits = (scale * query[:, y, x, :, :, None] * keys).sum(2)
            attention = logits.softmax(-1)
            out[:, y, x] = (attention[:, :, None, :] * values).sum(-1)
    return out
