"""Attention to a neighbourhood that stays inside the map, from NAT."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.layers.arguments import odd_number, rate, whole_number
from slide_mm.layers.heads import head_dim_of
from slide_mm.ops import compat
from slide_mm.ops.neighbourhood_attention import neighbourhood_attention

# A side of 32 pixels a token is 8192 pixels then.
MAX_DILATION = 256


class NeighbourhoodAttention(nn.Module):
    """Every token attends to the K x K tokens around it, at borders to the K x K nearest ones.

    Neighborhood Attention Transformer, CVPR 2023, arXiv 2204.07143, section 3; with a dilation,
    Dilated Neighborhood Attention Transformer, arXiv 2209.15001, section 3. As NATTEN 0.14.6 does,
    which all published weights were trained with, maps that a neighbourhood doesn't fit in are
    padded with zeros below and to the right, and padded tokens take part.

    Args:
        embed_dims: Channels C.
        num_heads: Number of heads; divides ``embed_dims``.
        kernel_size: Side K of the neighbourhood, odd.
        dilation: Step from neighbour to neighbour, in tokens.
        qkv_bias: Whether the projection to query, key and value has a bias.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability of the output.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim_of(embed_dims, num_heads)
        self.kernel_size = odd_number("kernel_size", kernel_size)
        self.dilation = whole_number("dilation", dilation, 1, MAX_DILATION)
        self.attn_drop = rate("attn_drop", attn_drop, below_one=True)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        side = 2 * kernel_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, side, side))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(rate("proj_drop", proj_drop))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        height, width = x.shape[1:3]
        x = self.pad(x)
        x = neighbourhood_attention(
            self.qkv(x).view(*x.shape[:3], 3, self.num_heads, self.head_dim),
            self.relative_position_bias_table,
            self.dilation,
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(self.proj(x[:, :height, :width].flatten(-2)))

    def pad(self, x: Tensor) -> Tensor:
        """Pad tokens (B, H, W, C) with zeros, below and to the right, to a neighbourhood's size."""
        least, sides = self.kernel_size * self.dilation, x.shape[1:3]
        # An exported program is for any size, and has no branches on it.
        if not compat.is_recorded() and min(sides) >= least:
            return x
        below, right = (_at_least(least, side) - side for side in sides)
        return F.pad(x, (0, 0, 0, right, 0, below))

    def resample(self, name: str, table: Tensor) -> Tensor | None:
        """Interpolate a checkpoint's bias table to this kernel; None if it is none of a kernel."""
        size = self.relative_position_bias_table.shape[1:]
        is_table = name == "relative_position_bias_table" and table.shape == (
            self.num_heads,
            *table.shape[-1:] * 2,
        )
        if not is_table:
            return None
        return F.interpolate(table[None], size=size, mode="bicubic")[0]

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return (
            f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={self.dilation}"
        )


def _at_least(least: int, side: int) -> int:
    """The larger of two, of which the second may be a symbol."""
    return torch.sym_max(least, side) if isinstance(side, torch.SymInt) else max(least, side)
