"""The transformer block that every family shares."""

from timm.layers import DropPath
from torch import Tensor, nn


class Block(nn.Module):
    """Norm, token mixer, norm, MLP, each pair with a residual connection.

    Args:
        embed_dims: Channels C.
        mixer: Maps (B, H, W, C) to the same shape by mixing tokens.
        mlp: Maps (B, H, W, C) to the same shape by mixing channels.
        drop_path: Probability of skipping a residual branch, for each sample.
        norm_eps: Epsilon of both layer norms.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
