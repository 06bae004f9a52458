"""Attention to a few sampled points of the map, from DAT."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.layers.arguments import flag, odd_number, rate, refuse, whole_number
from slide_mm.layers.heads import head_dim_of
from slide_mm.ops import compat

# Biases that are computed at a time where no gradients are.
_PIECE = 4 << 20


class DeformableAttention(nn.Module):
    """Every token attends to the same points, which the map itself moves from a regular grid.

    DAT, CVPR 2022, arXiv 2201.00520, section 3.2; DAT++, arXiv 2309.01430, section 3.2. A small
    network sees the queries and says how far each point moves. Keys and values are projections of
    what the input has there, between tokens by bilinear interpolation. The bias of a logit is
    interpolated likewise, in a table of displacements that are relative to the map: one table
    serves maps of any size. Groups of channels have points of their own.

    Coordinates run from -1, the first token, to 1, the last. Both versions are as their authors'
    code has them, half a token's shift included. Where DAT++'s divides by zero, a side's only point
    is the last token, as in that code, and its only query the first.

    Args:
        embed_dims: Channels C.
        num_heads: Number of heads; divides ``embed_dims``.
        num_groups: Number of groups; divides ``num_heads``.
        stride: Tokens from point to point of the regular grid.
        kernel_size: Side of the depth-wise convolution that sees the queries, odd.
        map_size: Side of the maps that the table is learned on, in tokens; the table has
            ``2 * map_size - 1`` rows and columns.
        plus: Whether points are DAT++'s, which move as far as they want and stay on the map, or
            DAT's, which move less far than to the next point.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability of the output.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_groups: int = 1,
        stride: int = 1,
        kernel_size: int = 3,
        map_size: int = 14,
        plus: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim_of(embed_dims, num_heads)
        self.num_groups = whole_number("num_groups", num_groups)
        if num_heads % num_groups:
            raise refuse("num_groups", num_groups, f"give a divisor of num_heads, {num_heads}")
        stride, map_size = whole_number("stride", stride), whole_number("map_size", map_size)
        kernel_size = odd_number("kernel_size", kernel_size)
        self.plus = flag("plus", plus)
        self.attn_drop = rate("attn_drop", attn_drop, below_one=True)
        self.q = nn.Linear(embed_dims, embed_dims)
        dims = embed_dims // num_groups
        self.offset_conv = nn.Conv2d(dims, dims, kernel_size, stride, kernel_size // 2, groups=dims)
        self.offset_norm = nn.LayerNorm(dims)
        self.offset_proj = nn.Linear(dims, 2, bias=False)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(num_heads, 2 * map_size - 1, 2 * map_size - 1)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(rate("proj_drop", proj_drop))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        query = self.q(x)
        points = self.find_points(query)
        kv = self.kv(self.sample(x, points)).unflatten(-1, (2, self.num_heads, self.head_dim))
        key, value = kv.permute(2, 0, 3, 1, 4)
        rows, columns = (self._query_coordinates(side, points) for side in x.shape[1:3])
        pieces = [(query, rows)]
        if not (torch.is_grad_enabled() or compat.is_compiling() or compat.is_recorded()):
            # At high resolution the biases of a whole map take gigabytes.
            num_rows = max(1, _PIECE // max(1, key[..., 0].numel() * x.shape[2]))
            pieces = zip(query.split(num_rows, 1), rows.split(num_rows), strict=True)
        attended = [
            self.attend(some, key, value, self.attention_bias(points, some_rows, columns))
            for some, some_rows in pieces
        ]
        return self.proj_drop(self.proj(torch.cat(attended, 1)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend with queries (B, H, W, C) to keys and values (B, num_heads, N, head_dim)."""
        size = query.shape[1:3]
        heads = query.unflatten(-1, (self.num_heads, self.head_dim)).flatten(1, 2).transpose(1, 2)
        dropout = self.attn_drop if self.training else 0.0
        heads = F.scaled_dot_product_attention(
            heads, key, value, bias.to(heads.dtype), dropout_p=dropout
        )
        heads = heads.transpose(1, 2)
        if compat.is_recorded():
            # Whoever reads the record may lay the output of attention out in another way.
            heads = heads.clone(memory_format=torch.contiguous_format)
        return heads.flatten(2).unflatten(1, size)

    def find_points(self, query: Tensor) -> Tensor:
        """Rows and columns of the points, from the queries (B, H, W, C).

        Returns:
            (B * num_groups, H', W', 2), in float32 at least: on maps of hundreds of tokens,
            coordinates in half precision are off by a tenth of one.
        """
        offsets = self.offset_conv(self._split_groups(query)).permute(0, 2, 3, 1)
        offsets = self.offset_proj(F.gelu(self.offset_norm(offsets)))
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        rows, columns = offsets.unbind(-1)
        rows = self._move(rows.transpose(1, 2), offsets.shape[1]).transpose(1, 2)
        return torch.stack([rows, self._move(columns, offsets.shape[2])], dim=-1)

    def _move(self, offsets: Tensor, side: int) -> Tensor:
        """Add offsets (..., side) to the regular grid's coordinates along one side."""
        grid = 2 * torch.arange(side, dtype=offsets.dtype, device=offsets.device) + 1
        if self.plus:
            # Of a side with one point, that is the last token: 1 / 0, clamped.
            return (grid / (side - 1) - 1 + offsets).clamp(-1, 1)
        return (grid + 2 * offsets.tanh()) / side - 1

    def sample(self, x: Tensor, points: Tensor) -> Tensor:
        """What tokens (B, H, W, C) have at the points of :meth:`find_points`, (B, N, C)."""
        maps = self._split_groups(x).to(points.dtype)
        sampled = F.grid_sample(maps, points.flip(-1), align_corners=True).to(x.dtype)
        sampled = sampled.flatten(2).unflatten(0, (x.shape[0], self.num_groups))
        return sampled.permute(0, 3, 1, 2).flatten(2)

    def attention_bias(self, points: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Bias of the logits, from the table.

        Args:
            points: See :meth:`find_points`.
            rows: Coordinates of the queries' H rows.
            columns: Those of their W columns.

        Returns:
            (B, num_heads, H * W, N), N points.
        """
        down, right = (
            (side[:, None] - coordinates[:, None]) / 2
            for side, coordinates in zip(
                (rows, columns), points.flatten(1, 2).unbind(-1), strict=True
            )
        )
        displacements = torch.broadcast_tensors(right[:, None], down[:, :, None])
        displacements = torch.stack(displacements, dim=-1).flatten(1, 2)
        table = self.relative_position_bias_table.to(points.dtype)
        batch = points.shape[0] // self.num_groups
        tables = table.unflatten(0, (self.num_groups, -1)).repeat(batch, 1, 1, 1)
        bias = F.grid_sample(tables, displacements, align_corners=True)
        return bias.unflatten(0, (batch, self.num_groups)).flatten(1, 2)

    def _query_coordinates(self, side: int, like: Tensor) -> Tensor:
        place = torch.arange(side, dtype=like.dtype, device=like.device)
        if self.plus:
            # 1 // side is 1 for one token and 0 for more: a side may be a symbol.
            return 2 * place / (side - 1 + 1 // side) - 1
        return (2 * place + 1) / side - 1

    def _split_groups(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) as maps (B * num_groups, C / num_groups, H, W)."""
        return x.unflatten(-1, (self.num_groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)

    def resample(self, name: str, table: Tensor) -> Tensor | None:
        """Interpolate a checkpoint's bias table to this size; None if it is of other heads."""
        expected = self.relative_position_bias_table.shape
        if name != "relative_position_bias_table" or table.ndim != 3 or len(table) != expected[0]:
            return None
        return F.interpolate(table[None], size=expected[1:], mode="bicubic")[0]

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return f"num_heads={self.num_heads}, num_groups={self.num_groups}, plus={self.plus}"
