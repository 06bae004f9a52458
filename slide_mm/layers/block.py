"""The transformer block that every family shares."""

from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from slide_mm.layers.arguments import rate, whole_number


class Block(nn.Module):
    """Norm, token mixer, norm, MLP, each pair with a residual connection.

    Args:
        embed_dims: Channels C.
        mixer: Maps (B, H, W, C) to the same shape by mixing tokens.
        mlp: Maps (B, H, W, C) to the same shape by mixing channels.
        drop_path: Probability of skipping a residual branch, for each sample.
        norm_eps: Epsilon of both layer norms.
        local: What tokens go through first, such as a :class:`LocalPerception`. Default: nothing.
        layer_scale: What the learned factors of the branches' channels start with (CaiT, arXiv
            2103.17239, section 2). Default: there are none.

    Raises:
        ValueError: If ``embed_dims`` or ``drop_path`` is out of its range.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        local: nn.Module | None = None,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        embed_dims = whole_number("embed_dims", embed_dims)

        def make_scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(embed_dims, layer_scale)

        self.local = local or nn.Identity()
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mixer = mixer
        self.scale1 = make_scale()
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = mlp
        self.scale2 = make_scale()
        self.drop_path = DropPath(rate("drop_path", drop_path))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        x = self.local(x)
        x = x + self.drop_path(self.token_branch(x))
        return x + self.drop_path(self.channel_branch(x))

    def token_branch(self, x: Tensor) -> Tensor:
        """The residual branch of the mixer."""
        return self.scale1(self.mixer(self.norm1(x)))

    def channel_branch(self, x: Tensor) -> Tensor:
        """The residual branch of the MLP."""
        return self.scale2(self.mlp(self.norm2(x)))


class LocalPerception(nn.Module):
    """A 3 x 3 depth-wise convolution with a residual connection.

    DAT++, arXiv 2309.01430, section 3.4; first in CMT, CVPR 2022, arXiv 2107.06263, section 3.3.

    Args:
        embed_dims: Channels C.

    Attributes:
        reach: How many tokens away a token sees.

    Raises:
        ValueError: If ``embed_dims`` is out of its range.
    """

    reach = 1

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        embed_dims = whole_number("embed_dims", embed_dims)
        self.conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
