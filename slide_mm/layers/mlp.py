"""The MLPs of the blocks."""

import timm.layers
import torch
from torch import Tensor, nn

from slide_mm.layers.arguments import rate, whole_number
from slide_mm.layers.hooks import is_watched
from slide_mm.ops.compat import is_compiling

# Bytes of hidden channels at a time: few enough to be memory that the process has had before,
# enough for matrix products at full speed (measured: docs/performance.md).
_CPU_CHUNK = 8 << 20


class Mlp(timm.layers.Mlp):
    """timm's MLP, which takes some tokens at a time on a CPU.

    At high resolution the hidden channels of all tokens are tensors so large that the system gives
    fresh memory for each, and touching it takes as long as the matrix products.

    Args:
        embed_dims: Channels C.
        hidden_dims: Channels between the linear layers.
        drop: Dropout probability after the activation and at the output.

    Attributes:
        reach: How many tokens away a token sees.
        banded_from: Bytes of all hidden channels beyond which a block works in bands of rows.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    reach = 0
    banded_from = 256 << 20

    def __init__(self, embed_dims: int, hidden_dims: int, drop: float = 0.0) -> None:
        embed_dims = whole_number("embed_dims", embed_dims)
        hidden_dims = whole_number("hidden_dims", hidden_dims)
        super().__init__(embed_dims, hidden_dims, drop=rate("drop", drop))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., C) to tokens of the same shape."""
        whole = super().forward
        if x.device.type != "cpu" or is_compiling() or torch.jit.is_tracing():
            return whole(x)
        if is_watched(self):
            return whole(x)
        num_tokens = max(1, _CPU_CHUNK // (self.fc1.out_features * x.element_size()))
        return torch.cat([whole(part) for part in x.flatten(0, -2).split(num_tokens)]).view(x.shape)


class DepthwiseConvMlp(nn.Module):
    """Two linear layers with a 3 x 3 depth-wise convolution between them.

    PVTv2, arXiv 2106.13797, section 3.3. The zero padding of the convolution takes the place of
    a position embedding.

    Args:
        embed_dims: Channels C.
        hidden_dims: Channels between the linear layers.
        drop: Dropout probability after the activation and at the output.

    Attributes:
        reach: How many tokens away a token sees.
        banded_from: Bytes of all hidden channels beyond which a block works in bands of rows.

    Raises:
        ValueError: If an argument is out of its range; the message names argument and value.
    """

    reach = 1
    banded_from = 32 << 20

    def __init__(self, embed_dims: int, hidden_dims: int, drop: float = 0.0) -> None:
        super().__init__()
        embed_dims = whole_number("embed_dims", embed_dims)
        hidden_dims = whole_number("hidden_dims", hidden_dims)
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.dwconv = nn.Conv2d(hidden_dims, hidden_dims, 3, padding=1, groups=hidden_dims)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop = nn.Dropout(rate("drop", drop))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        x = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(self.act(x))))
