"""The MLPs of the blocks."""

import timm.layers
from torch import Tensor, nn

from slide_mm.layers.arguments import flag, rate, whole_number


class Mlp(timm.layers.Mlp):
    """timm's MLP.

    Args:
        embed_dims: Channels C.
        hidden_dims: Channels between the linear layers.
        drop: Dropout probability after the activation and at the output.

    Attributes:
        reach: How many tokens away a token sees.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    reach = 0

    def __init__(self, embed_dims: int, hidden_dims: int, drop: float = 0.0) -> None:
        embed_dims = whole_number("embed_dims", embed_dims)
        hidden_dims = whole_number("hidden_dims", hidden_dims)
        super().__init__(embed_dims, hidden_dims, drop=rate("drop", drop))


class DepthwiseConvMlp(nn.Module):
    """Two linear layers with a 3 x 3 depth-wise convolution between them.

    PVTv2, arXiv 2106.13797, section 3.3. The zero padding of the convolution takes the place of
    a position embedding.

    Args:
        embed_dims: Channels C.
        hidden_dims: Channels between the linear layers.
        drop: Dropout probability after the activation and at the output.
        skip: Whether a residual connection leads around the convolution, as in DAT++.

    Attributes:
        reach: How many tokens away a token sees.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    reach = 1

    def __init__(
        self, embed_dims: int, hidden_dims: int, drop: float = 0.0, skip: bool = False
    ) -> None:
        super().__init__()
        embed_dims = whole_number("embed_dims", embed_dims)
        hidden_dims = whole_number("hidden_dims", hidden_dims)
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.dwconv = nn.Conv2d(hidden_dims, hidden_dims, 3, padding=1, groups=hidden_dims)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(rate("drop", drop))
        self.skip = flag("skip", skip)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        hidden = self.fc1(x)
        mixed = self.dwconv(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.skip:
            mixed = hidden + mixed
        return self.drop(self.fc2(self.drop(self.act(mixed))))
