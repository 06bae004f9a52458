"""Attention inside a cross of two stripes, from CSWin."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.layers.arguments import rate, refuse, whole_number
from slide_mm.layers.downsampling import round_up
from slide_mm.layers.heads import head_dim_of
from slide_mm.ops import compat


class CrossShapedAttention(nn.Module):
    """Self-attention of half of the heads inside columns of tokens, of the others inside rows.

    CSWin Transformer, CVPR 2022, arXiv 2107.00652, sections 3.2 and 3.3. A stripe is a few columns
    wide and as high as the map, or a few rows high and as wide as the map. To its output a
    depth-wise convolution of the values is added, the locally-enhanced positional encoding, which
    sees its own stripe alone. As in the authors' segmentation code, maps are padded with zeros to
    whole stripes on both sides, after the projection, and padded tokens take part.

    Args:
        embed_dims: Channels C.
        num_heads: Number of heads, even; divides ``embed_dims``.
        stripe_width: Width of a stripe, in tokens. None for no stripes: all heads see the whole
            map, and then their number may be odd.
        qkv_bias: Whether the projection to query, key and value has a bias.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability of the output. The authors' code takes one and drops nothing.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        stripe_width: int | None = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim_of(embed_dims, num_heads)
        self.stripe_width = stripe_width
        num_branches = 1
        if stripe_width is not None:
            self.stripe_width = whole_number("stripe_width", stripe_width)
            num_branches = 2
        if num_heads % num_branches:
            raise refuse(
                "num_heads", num_heads, "give an even number: half for columns, half for rows"
            )
        self.attn_drop = rate("attn_drop", attn_drop, below_one=True)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        dims = embed_dims // num_branches
        self.lepe = nn.ModuleList(
            nn.Conv2d(dims, dims, 3, padding=1, groups=dims) for _ in range(num_branches)
        )
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(rate("proj_drop", proj_drop))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, len(self.lepe), -1, self.head_dim))
        if self.stripe_width is None:
            x = self.attend(qkv.squeeze(4), self.lepe[0])
        else:
            columns, rows = qkv.unbind(4)
            columns = self.attend_in_stripes(columns, 2, self.lepe[0])
            rows = self.attend_in_stripes(rows, 1, self.lepe[1])
            x = torch.cat([columns, rows], dim=-1)
        return self.proj_drop(self.proj(x))

    def attend_in_stripes(self, qkv: Tensor, dim: int, lepe: nn.Module) -> Tensor:
        """Attend inside stripes.

        Args:
            qkv: Query, key and value (B, H, W, 3, heads, head_dim) of some heads.
            dim: What stripes lie beside each other along: 1 for rows, 2 for columns.
            lepe: The convolution of the values.

        Returns:
            (B, H, W, heads * head_dim).
        """
        batch, side = qkv.shape[0], qkv.shape[dim]
        padded = round_up(side, self.stripe_width)
        before = (padded - side) // 2
        # F.pad counts dimensions from the last one.
        qkv = F.pad(qkv, (0, 0) * (5 - dim) + (before, padded - side - before))
        num_stripes = padded // self.stripe_width
        stripes = qkv.unflatten(dim, (num_stripes, self.stripe_width)).movedim(dim, 1)
        x = self.attend(stripes.flatten(0, 1), lepe)
        x = x.unflatten(0, (batch, num_stripes)).movedim(1, dim).flatten(dim, dim + 1)
        return x.narrow(dim, before, side)

    def attend(self, qkv: Tensor, lepe: nn.Module) -> Tensor:
        """Attend on whole maps (B, H, W, 3, heads, head_dim) to (B, H, W, heads * head_dim)."""
        height, width = qkv.shape[1:3]
        query, key, value = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.attn_drop if self.training else 0.0
        )
        x = x.transpose(1, 2)
        if compat.is_recorded():
            # Whoever reads the record may lay the output of attention out in another way.
            x = x.clone(memory_format=torch.contiguous_format)
        x = x.flatten(2).unflatten(1, (height, width))
        image = qkv[:, :, :, 2].flatten(3).permute(0, 3, 1, 2)
        return x + lepe(image).permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return f"num_heads={self.num_heads}, stripe_width={self.stripe_width}"
