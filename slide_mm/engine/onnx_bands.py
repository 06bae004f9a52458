"""Sliding blocks in bands of rows, for ONNX files.

A runtime computes one operation after the other, each on all that it is given. On whole maps, what
one writes has left the caches when the next reads it. A band of rows stays there from the norm to
the MLP. All maps are channels-last, (B, H, W, C).
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slide_mm.layers import Block, DepthwiseConvMlp, Mlp, SlideAttention

# Numbers of a map in one band: few enough for caches, enough for work on all threads (measured:
# docs/deployment.md).
_BAND_SIZE = 240 << 10
_EXAMPLE_SIDE = 12


class BandedBlock(nn.Module):
    """A deployed block with Slide Attention; the graph has a loop over bands.

    Args:
        block: With a :class:`~slide_mm.layers.SlideAttention` as mixer.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        body = _BandOfBlock(block)
        self.bands = torch.jit.script(_Bands(body))
        self.rest = nn.Identity() if body.has_mlp else _Residual(block.norm2, block.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        # In the loop PyTorch's exporter loses the rank, and OpenVINO the type.
        return self.rest(self.bands(x).to(x.dtype).view(x.shape))


class _Bands(nn.Module):
    """A loop over bands of rows, which overlap by what a token sees above and below it."""

    def __init__(self, block: "_BandOfBlock") -> None:
        super().__init__()
        self.kernel_size, self.margin = block.kernel_size, block.kernel_size // 2
        self.num_tokens = _BAND_SIZE // block.channels
        side = _EXAMPLE_SIDE
        inside = block.mixer.ones.new_ones(side, side, 1)
        neighbours = self.index_neighbours(side - 2 * self.margin, side - 2 * self.margin)
        example = inside.new_zeros(2, side, side, block.channels), inside, neighbours
        self.block = torch.jit.trace(block, example, check_trace=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width = x.shape[0], x.shape[1], x.shape[2]
        max_rows = max(1, self.num_tokens // (batch * width))
        num_bands = (height + max_rows - 1) // max_rows
        # All of one height, below the image if need be: OpenVINO joins no others.
        num_rows = (height + num_bands - 1) // num_bands
        margin, below = self.margin, num_bands * num_rows - height
        padding = [0, 0, margin, margin, margin, margin + below]
        inside = F.pad(torch.ones([height, width, 1], dtype=x.dtype, device=x.device), padding)
        x = F.pad(x, padding)
        neighbours = self.index_neighbours(num_rows, width)
        bands = []
        for index in range(num_bands):
            first, size = index * num_rows, num_rows + 2 * margin
            bands.append(
                self.block(x.narrow(1, first, size), inside.narrow(0, first, size), neighbours)
            )
        return torch.cat(bands, 1).narrow(1, 0, height)

    def index_neighbours(self, num_rows: int, width: int) -> Tensor:
        """Positions (K*K, N) in a flattened band of what each tap shows to its N tokens."""
        tap, stride = torch.arange(self.kernel_size), width + 2 * self.margin
        token = torch.arange(num_rows)[:, None] * stride + torch.arange(width)
        return (tap[:, None] * stride + tap).view(-1, 1) + token.view(1, -1)


class _BandOfBlock(nn.Module):
    """A block on a band with its margin; ``inside`` (H, W, 1) is 0 outside the image."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.kernel_size = block.mixer.kernel_size
        self.channels = block.mixer.proj.in_features
        self.norm, self.mixer = block.norm1, _BandOfAttention(block.mixer)
        self.has_mlp = isinstance(block.mlp, Mlp)
        self.mlp = _Residual(block.norm2, block.mlp) if self.has_mlp else nn.Identity()

    def forward(self, x: Tensor, inside: Tensor, neighbours: Tensor) -> Tensor:
        batch, width = x.shape[0], x.shape[2] - 2 * (self.kernel_size // 2)
        x, inside = x.reshape(batch, -1, self.channels), inside.view(-1, 1)
        centre = neighbours[self.kernel_size**2 // 2]
        x = x[:, centre] + self.mixer(self.norm(x), inside, neighbours)
        # The number of channels, lost in the sum, lets onnxruntime fuse more.
        x = self.mlp(x.reshape(batch, -1, self.channels))
        return x.reshape(batch, -1, width, self.channels)


class _Residual(nn.Module):
    def __init__(self, norm: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch = norm, branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x))


class _BandOfAttention(nn.Module):
    """:func:`slide_mm.ops.forms.score_by_tap` and its transpose, all taps at once."""

    def __init__(self, layer: SlideAttention) -> None:
        super().__init__()
        self.query, self.key, self.value = _split(layer.qkv, 3)
        self.proj = layer.proj
        self.num_heads, self.head_dim = layer.num_heads, layer.head_dim
        self.num_taps = layer.kernel_size**2
        scale = layer.head_dim**-0.5
        kernel = layer.kernel.flatten(2).permute(2, 0, 1)  # From (C, p, o) to (o, C, p).
        logit_bias = layer.shift_bias + layer.relative_position_bias_table[:, None]
        for name, constant in {
            "score_kernel": kernel * scale,
            "logit_bias": torch.block_diag(*logit_bias) * scale,
            "value_kernel": kernel.transpose(1, 2),
            "value_bias": layer.shift_bias.T,
            "ones": kernel.new_ones(1, self.num_taps),
        }.items():
            self.register_buffer(name, constant.contiguous())

    def forward(self, x: Tensor, inside: Tensor, neighbours: Tensor) -> Tensor:
        batch, taps, channels = x.shape[0], self.num_taps, self.proj.in_features
        key, value = ((linear(x) * inside)[:, neighbours] for linear in (self.key, self.value))
        query = self.query(x[:, neighbours[taps // 2]])
        products = (query.unsqueeze(1) * key).reshape(batch, taps, -1, self.head_dim)
        logits = self.sum_taps(products @ self.score_kernel, taps)
        logits = logits + (query @ self.logit_bias).reshape(batch, -1, taps)
        attention = logits.softmax(-1)
        weights = (attention.unsqueeze(1) @ self.value_kernel).reshape(batch, taps, -1, channels)
        x = self.sum_taps(weights * value, channels)
        x = x + (attention @ self.value_bias).reshape(batch, -1, channels)
        return self.proj(x)

    def sum_taps(self, x: Tensor, channels: int) -> Tensor:
        """Sum (B, K*K, N, channels) over the taps; a product, as onnxruntime's sums are slow."""
        batch = x.shape[0]
        total = self.ones @ x.reshape(batch, self.num_taps, -1)
        return total.reshape(batch, -1, channels)


class ConvMlp(nn.Module):
    """A depth-wise MLP of convolutions only, between which onnxruntime keeps its own layout.

    Args:
        mlp: Its weights are taken.
    """

    def __init__(self, mlp: DepthwiseConvMlp) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.act, self.fc2 = mlp.fc1, mlp.dwconv, mlp.act, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        x = self.dwconv(_pointwise(x.permute(0, 3, 1, 2), self.fc1))
        return _pointwise(self.act(x), self.fc2).permute(0, 2, 3, 1)


def _pointwise(x: Tensor, linear: nn.Linear) -> Tensor:
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def _split(linear: nn.Linear, parts: int) -> list[nn.Linear]:
    """The layers that compute equal parts of a linear layer's output."""
    layers = [copy.deepcopy(linear) for _ in range(parts)]
    for index, layer in enumerate(layers):
        for name, parameter in linear.named_parameters():
            setattr(layer, name, nn.Parameter(parameter.chunk(parts)[index]))
    return layers
