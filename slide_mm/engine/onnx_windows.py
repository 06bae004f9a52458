"""Window attention whose windows are cut and joined by indices, for ONNX files.

A runtime copies the map for every step of its way into windows and back: padding, shifting,
cutting, splitting in heads, and cropping. An index of where each token goes takes the same steps
at the price of one channel, and tokens are copied once.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.engine.onnx_bands import split_linear
from slide_mm.layers import ShiftedWindowAttention


class IndexedWindowAttention(nn.Module):
    """Window attention; the graph has one ``Gather`` for each of query, key, value and output.

    A bias of the key adds the same to all logits of a query, which softmax takes away again, and
    one of the value adds itself to the output, as attention weights sum to one.

    Args:
        layer: Its weights are taken.
    """

    def __init__(self, layer: ShiftedWindowAttention) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.head_dim = layer.num_heads, layer.head_dim
        self.query, self.key, self.value = split_linear(layer.qkv, 3)
        self.proj = copy.deepcopy(layer.proj)
        with torch.no_grad():
            for parameter in self.query.parameters():
                parameter *= layer.head_dim**-0.5
            if layer.qkv.bias is not None:
                self.proj.bias += self.proj.weight @ self.value.bias
        self.key.bias = self.value.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        size = x.shape[1:3]
        # The first is the padding's: key and value, without bias, are 0 as well.
        tokens = F.pad(x.flatten(1, 2), (0, 0, 1, 0))
        rows = self.index_tokens(size)
        query, key, value = (
            self.gather(linear(tokens), rows) for linear in (self.query, self.key, self.value)
        )
        logits = query @ key.transpose(-1, -2) + self.layer.attention_bias(size)
        heads = logits.softmax(-1) @ value
        rows = self.index_heads(size, heads.shape)
        return self.proj(self.gather(heads, rows).view(x.shape))

    def gather(self, x: Tensor, rows: Tensor) -> Tensor:
        """Fetch the heads' vectors (B, *rows.shape, head_dim) from all of ``x``."""
        x = x.reshape(x.shape[0], -1, self.head_dim).index_select(1, rows.flatten())
        return x.view(-1, *rows.shape, self.head_dim)

    def index_tokens(self, size: Sequence[int]) -> Tensor:
        """Index the heads' vectors of tokens, after those of one of padding, for windows.

        Returns:
            (num_windows, num_heads, N), of the windows of a map of this size.
        """
        token = torch.arange(size[0] * size[1]).view(1, *size, 1) + 1
        windows = self.layer.cut_windows(token)[0] * self.num_heads
        return (windows + torch.arange(self.num_heads)).transpose(1, 2)

    def index_heads(self, size: Sequence[int], shape: torch.Size) -> Tensor:
        """Index the vectors of windows, (B, num_windows, num_heads, N, head_dim), for a map.

        Returns:
            (H, W, num_heads), of a map of this size.
        """
        _, num_windows, num_heads, tokens, _ = shape
        rows = torch.arange(num_windows * num_heads * tokens).view(1, num_windows, num_heads, -1)
        first_head = self.layer.join_windows(rows[:, :, 0, :, None], size)[0]
        return first_head + torch.arange(num_heads) * tokens
