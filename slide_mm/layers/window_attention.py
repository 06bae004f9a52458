"""Attention inside shifted windows, from Swin Transformer."""

import functools
import math
from collections.abc import Sequence

import torch
from timm.layers import resize_rel_pos_bias_table_simple
from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.layers.arguments import rate, whole_number
from slide_mm.layers.downsampling import pad_to_multiple, round_up
from slide_mm.layers.heads import head_dim_of
from slide_mm.ops import compat

# Each block keeps the square of a window's tokens, 8 bytes a pair.
MAX_WINDOW_SIZE = 64


class ShiftedWindowAttention(nn.Module):
    """Self-attention inside windows, which every other block shifts by half their side.

    Swin Transformer, ICCV 2021, arXiv 2103.14030, section 3.2. As in the authors' detection code,
    maps are padded with zeros to whole windows, and padded tokens take part. As in their
    classification code, nothing is shifted along a side that one window covers.

    Args:
        embed_dims: Channels C.
        num_heads: Number of heads; divides ``embed_dims``.
        window_size: Side of a window, in tokens.
        shifted: Whether windows are shifted by ``window_size // 2``.
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
        window_size: int = 7,
        shifted: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim_of(embed_dims, num_heads)
        self.window_size = window_size = whole_number(
            "window_size", window_size, 1, MAX_WINDOW_SIZE
        )
        self.shift_size = window_size // 2 if shifted else 0
        self.attn_drop = rate("attn_drop", attn_drop, below_one=True)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer(
            "relative_position_index", relative_position_index(window_size), persistent=False
        )
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(rate("proj_drop", proj_drop))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        size = x.shape[1:3]
        windows = self.attend(self.cut_windows(x), self.attention_bias(size))
        return self.proj_drop(self.proj(self.join_windows(windows, size)))

    def cut_windows(self, x: Tensor) -> Tensor:
        """Cut tokens (B, H, W, C), padded and shifted, into windows (B, num_windows, N, C)."""
        shifts = self._shifts(x.shape[1:3])
        x = pad_to_multiple(x, self.window_size)
        if self.shift_size:
            x = x.roll([-shift for shift in shifts], dims=(1, 2))
        return partition_windows(x, self.window_size)

    def join_windows(self, windows: Tensor, size: Sequence[int]) -> Tensor:
        """Put windows (B, num_windows, N, C) together again to tokens (B, *size, C)."""
        x = merge_windows(windows, self.window_size, self._padded(size))
        if self.shift_size:
            x = x.roll(self._shifts(size), dims=(1, 2))
        return x[:, : size[0], : size[1]]

    def _shifts(self, size: Sequence[int]) -> tuple[int, int]:
        # 1 // n is 1 for one window and 0 for more: a side may be a symbol, which has no branches.
        sides = self._padded(size)
        return tuple(self.shift_size * (1 - self.window_size // side) for side in sides)

    def _padded(self, size: Sequence[int]) -> tuple[int, int]:
        return tuple(round_up(side, self.window_size) for side in size)

    def attend(self, windows: Tensor, attention_bias: Tensor) -> Tensor:
        """Attend inside windows (B, num_windows, N, C), N tokens a window."""
        batch, num_windows, tokens, channels = windows.shape
        qkv = self.qkv(windows).view(-1, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.shift_size:
            attention_bias = attention_bias.repeat(batch, 1, 1, 1)
        x = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attention_bias.to(query.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        x = x.transpose(1, 2)
        if compat.is_recorded():
            # Whoever reads the record may lay the output of attention out in another way.
            x = x.clone(memory_format=torch.contiguous_format)
        return x.reshape(batch, num_windows, tokens, channels)

    def attention_bias(self, size: Sequence[int]) -> Tensor:
        """Bias of the logits of a map: relative positions and mask.

        Returns:
            (1 or num_windows, num_heads, N, N), the former without shifts.
        """
        tokens = self.window_size**2
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(1, tokens, tokens, self.num_heads).permute(0, 3, 1, 2)
        if self.shift_size == 0:
            return bias
        plain = type(bias) is Tensor  # The cache wants no fake one, of which graphs are made.
        make_mask = cached_shifted_window_mask if plain else shifted_window_mask
        sizes = self._padded(size), self.window_size, self._shifts(size)
        mask = make_mask(*sizes, bias.dtype, bias.device)
        return bias + mask.unsqueeze(1)

    def resample(self, name: str, table: Tensor) -> Tensor | None:
        """Interpolate a checkpoint's bias table to this window; None if it is none of a square."""
        expected = self.relative_position_bias_table.shape
        is_table = name == "relative_position_bias_table" and table.shape[1:] == expected[1:]
        if not is_table or math.isqrt(len(table)) ** 2 != len(table):
            return None
        return resize_rel_pos_bias_table_simple(table, (self.window_size,) * 2, expected)

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return (
            f"num_heads={self.num_heads}, window_size={self.window_size}, "
            f"shift_size={self.shift_size}"
        )


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each pair of tokens in a window, (N, N)."""
    side = torch.arange(window_size)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    coordinates = torch.stack([rows.flatten(), columns.flatten()], dim=-1)
    offsets = coordinates[:, None] - coordinates[None] + window_size - 1
    return offsets[..., 0] * (2 * window_size - 1) + offsets[..., 1]


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut (B, H, W, C) into windows (B, num_windows, N, C)."""
    batch, height, width, channels = x.shape
    rows, columns = height // window_size, width // window_size
    x = x.view(batch, rows, window_size, columns, window_size, channels)
    return x.transpose(2, 3).reshape(batch, rows * columns, window_size**2, channels)


def merge_windows(windows: Tensor, window_size: int, size: tuple[int, int]) -> Tensor:
    """Put windows (B, num_windows, N, C) together again to (B, H, W, C)."""
    batch, _, _, channels = windows.shape
    rows, columns = size[0] // window_size, size[1] // window_size
    x = windows.view(batch, rows, columns, window_size, window_size, channels)
    return x.transpose(2, 3).reshape(batch, *size, channels)


def shifted_window_mask(
    size: tuple[int, int],
    window_size: int,
    shifts: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Mask (num_windows, N, N) between tokens that are neighbours by the cyclic shift alone.

    0 where two tokens were neighbours before the shift and -inf where not. The authors' code has
    -100, which leaves weights around 1e-44: CPUs take many times as long for numbers so small.
    """
    regions = [
        _regions(side, window_size, shift, device) for side, shift in zip(size, shifts, strict=True)
    ]
    region = 3 * regions[0][:, None] + regions[1]
    region = partition_windows(region[None, :, :, None], window_size)[0, :, :, 0]
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape, dtype=dtype, device=device).masked_fill(apart, -torch.inf)


# The blocks of a stage share a mask; so do images of one size.
cached_shifted_window_mask = functools.lru_cache(maxsize=8)(
    torch.inference_mode(False)(shifted_window_mask)
)


def _regions(side: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    position = torch.arange(side, device=device)
    return (position >= side - window_size).long() + (position >= side - shift).long()
