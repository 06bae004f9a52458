"""Global attention to a reduced map, from PVT."""

from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.layers.arguments import rate, whole_number
from slide_mm.layers.heads import head_dim_of


class SpatialReductionAttention(nn.Module):
    """Every token attends to keys and values on a grid that is ``sr_ratio`` times coarser.

    PVT, ICCV 2021, arXiv 2102.12122, section 3.3. As in the authors' code, rows and columns left
    over at the lower and right border, fewer than ``sr_ratio``, give no key.

    Args:
        embed_dims: Channels C.
        num_heads: Number of heads; divides ``embed_dims``.
        sr_ratio: Reduction of height and width; 1 is ordinary attention.
        qkv_bias: Whether the projections to query, key and value have a bias.
        attn_drop: Dropout probability of the attention weights.
        proj_drop: Dropout probability of the output.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim_of(embed_dims, num_heads)
        self.sr_ratio = whole_number("sr_ratio", sr_ratio)
        self.attn_drop = rate("attn_drop", attn_drop, below_one=True)
        self.q = nn.Linear(embed_dims, embed_dims, bias=qkv_bias)
        self.kv = nn.Linear(embed_dims, 2 * embed_dims, bias=qkv_bias)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(rate("proj_drop", proj_drop))

    def reduce(self, x: Tensor) -> Tensor:
        """Coarsen tokens (B, H, W, C) by ``sr_ratio``; a map smaller than that is padded."""
        height, width = x.shape[1:3]
        padding = (0, 0, 0, max(0, self.sr_ratio - width), 0, max(0, self.sr_ratio - height))
        image = F.pad(x, padding).permute(0, 3, 1, 2)
        return self.norm(self.sr(image).permute(0, 2, 3, 1))

    def key_and_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of the coarser ones of tokens (B, H, W, C).

        Returns:
            Each (B, num_heads, N, head_dim), of their N tokens.
        """
        reduced = self.reduce(x) if self.sr_ratio > 1 else x
        kv = self.kv(reduced).reshape(x.shape[0], -1, 2, self.num_heads, self.head_dim)
        key, value = kv.permute(2, 0, 3, 1, 4)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with queries (B, ..., C) to what :meth:`key_and_value` gives."""
        heads = query.reshape(query.shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)
        dropout = self.attn_drop if self.training else 0.0
        heads = F.scaled_dot_product_attention(heads, key, value, dropout_p=dropout)
        return heads.transpose(1, 2).reshape(query.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        return self.proj_drop(self.proj(self.attend(self.q(x), *self.key_and_value(x))))

    def extra_repr(self) -> str:
        """Show what the submodules don't."""
        return f"num_heads={self.num_heads}, sr_ratio={self.sr_ratio}"
