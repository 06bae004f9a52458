"""Absolute position embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.layers.arguments import whole_number
from slide_mm.ops import compat


class AbsolutePositionEmbedding(nn.Module):
    """A learned vector for every position, resized to the map at hand.

    PVT, ICCV 2021, arXiv 2102.12122, section 3.2.

    Args:
        embed_dims: Channels C.
        size: Side of the learned square table, in tokens.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(self, embed_dims: int, size: int) -> None:
        super().__init__()
        embed_dims, size = whole_number("embed_dims", embed_dims), whole_number("size", size)
        self.table = nn.Parameter(torch.empty(1, embed_dims, size, size))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Add the positions to tokens (B, H, W, C)."""
        table = self.table
        # An exported program is for any size, and has no branches on it.
        if compat.is_recorded() or table.shape[2:] != x.shape[1:3]:
            table = F.interpolate(table, size=x.shape[1:3], mode="bilinear")
        return x + table.permute(0, 2, 3, 1)

    def resample(self, name: str, table: Tensor) -> Tensor | None:
        """Interpolate a checkpoint's table to this size; None if it is of other channels."""
        if table.ndim != 4 or table.shape[:2] != self.table.shape[:2]:
            return None
        return F.interpolate(table, size=self.table.shape[2:], mode="bilinear")
