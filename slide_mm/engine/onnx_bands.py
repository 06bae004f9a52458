"""Sliding blocks in bands of rows, for ONNX files.

A runtime computes one operation after the other, each on all that it is given. On whole maps, what
one writes has left the caches when the next reads it. A band of rows stays there from the norm to
the MLP, and what belongs to one tap in those next to the cores. Maps are channels-last,
(B, H, W, C).
"""

import copy
import functools

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
    """A loop over bands of rows, which overlap by what a token sees above and below it.

    In it tokens are (N, 1, C). Images, rows and columns are in the indices, so that shapes need no
    arithmetic; of tokens (N, C) linear layers would become Gemm, slower than MatMul in onnxruntime.
    """

    def __init__(self, block: "_BandOfBlock") -> None:
        super().__init__()
        self.kernel_size, self.margin = block.kernel_size, block.kernel_size // 2
        self.channels, self.num_tokens = block.channels, _BAND_SIZE // block.channels
        side = _EXAMPLE_SIDE
        neighbours = self.index_neighbours(2, side, side)
        self.taps = torch.jit.trace(_Unbind(), neighbours)
        tokens = block.mixer.proj.new_zeros(2 * side * side, 1, block.channels)
        positions, inside = self.index_map(2, side, side, 0, tokens)
        example = tokens, positions.view(-1), inside.reshape(-1, 1, 1), self.taps(neighbours)
        self.block = torch.jit.trace(block, example, check_trace=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width = x.shape[0], x.shape[1], x.shape[2]
        max_rows = max(1, self.num_tokens // (batch * width))
        num_bands = (height + max_rows - 1) // max_rows
        # All of one height, below the image if need be: OpenVINO joins no others.
        num_rows = (height + num_bands - 1) // num_bands
        below = num_bands * num_rows - height
        positions, inside = self.index_map(batch, height, width, below, x)
        taps = self.taps(self.index_neighbours(batch, num_rows, width))
        tokens = x.reshape(-1, 1, self.channels)
        bands = []
        for index in range(num_bands):
            first, size = index * num_rows, num_rows + 2 * self.margin
            band = self.block(
                tokens,
                positions.narrow(1, first, size).reshape(-1),
                inside.narrow(1, first, size).reshape(-1, 1, 1),
                taps,
            )
            bands.append(band.view(batch, num_rows, width, self.channels))
        return torch.cat(bands, 1).narrow(1, 0, height)

    def index_map(
        self, batch: int, height: int, width: int, below: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Index maps to which a margin is added, and rows below.

        Returns:
            Positions in the flattened maps, of the nearest token for those in the margin, and 1 for
            tokens, 0 in the margin; both (B, H + 2 * margin + below, W + 2 * margin).
        """
        row = torch.arange(height + 2 * self.margin + below)[:, None] - self.margin
        column = torch.arange(width + 2 * self.margin) - self.margin
        nearest_row, nearest_column = row.clamp(0, height - 1), column.clamp(0, width - 1)
        image = torch.arange(batch).view(-1, 1, 1)
        positions = (image * height + nearest_row) * width + nearest_column
        inside = (row == nearest_row) & (column == nearest_column)
        return positions, inside.to(like.dtype).expand(batch, -1, -1)

    def index_neighbours(self, batch: int, num_rows: int, width: int) -> Tensor:
        """Positions (K*K, N) in flattened bands with margins of what taps show to N tokens."""
        tap, row_size = torch.arange(self.kernel_size), width + 2 * self.margin
        row = torch.arange(batch)[:, None] * (num_rows + 2 * self.margin) + torch.arange(num_rows)
        token = row.view(-1, 1) * row_size + torch.arange(width)
        return (tap[:, None] * row_size + tap).view(-1, 1) + token.view(1, -1)


class _Unbind(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.unbind(0)


class _BandOfBlock(nn.Module):
    """A block on bands, where ``inside`` (M, 1, 1) is 0 in margins outside the image."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.kernel_size = block.mixer.kernel_size
        self.channels = block.mixer.proj.in_features
        self.norm, self.mixer = block.norm1, _BandOfAttention(block.mixer)
        self.has_mlp = isinstance(block.mlp, Mlp)
        self.mlp = _Residual(block.norm2, block.mlp) if self.has_mlp else nn.Identity()

    def forward(
        self, tokens: Tensor, positions: Tensor, inside: Tensor, taps: tuple[Tensor, ...]
    ) -> Tensor:
        x = tokens[positions]
        residual = x[taps[len(taps) // 2]]
        return self.mlp(self.mixer(self.norm(x), inside, taps, residual))


class _Residual(nn.Module):
    def __init__(self, norm: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch = norm, branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x))


class _BandOfAttention(nn.Module):
    """:func:`slide_mm.ops.forms.score_by_tap` and its transpose, and the residual connection."""

    def __init__(self, layer: SlideAttention) -> None:
        super().__init__()
        self.query, self.key, self.value = _split(layer.qkv, 3)
        self.channels = layer.proj.in_features
        self.num_heads, self.head_dim = layer.num_heads, layer.head_dim
        self.num_taps = layer.kernel_size**2
        scale = layer.head_dim**-0.5
        kernel = layer.kernel.flatten(2).permute(2, 0, 1)  # From (C, p, o) to (o, C, p).
        logit_bias = layer.shift_bias + layer.relative_position_bias_table[:, None]
        proj = layer.proj.weight.T.reshape(self.num_heads, self.head_dim, -1)
        # The bias of the output rides on them, as each head's attention weights sum to one.
        value_bias = layer.shift_bias.T @ proj + layer.proj.bias / self.num_heads
        for name, constant in {
            "score_kernel": kernel * scale,
            "logit_bias": torch.block_diag(*logit_bias) * scale,
            "value_kernel": kernel.transpose(1, 2),
            "value_bias": value_bias.flatten(0, 1),
            "proj": layer.proj.weight.T,
        }.items():
            self.register_buffer(name, constant.detach().contiguous())

    def forward(
        self, x: Tensor, inside: Tensor, taps: tuple[Tensor, ...], residual: Tensor
    ) -> Tensor:
        size = -1, self.channels
        query = self.query(x[taps[self.num_taps // 2]]).reshape(size)
        key, value = ((linear(x) * inside).reshape(size) for linear in (self.key, self.value))
        logits = (query @ self.logit_bias).reshape(-1, self.num_taps)
        for tap, kernel in zip(taps, self.score_kernel.unbind(0), strict=True):
            product = (query * key[tap]).reshape(-1, self.head_dim)
            logits = torch.addmm(logits, product, kernel)
        attention = logits.softmax(-1)
        # One after the other, in the graph too: all products at once leave the caches.
        products = (
            (attention @ kernel).reshape(size) * value[tap]
            for tap, kernel in zip(taps, self.value_kernel.unbind(0), strict=True)
        )
        x = functools.reduce(torch.add, products)
        x = torch.addmm(residual.reshape(size), x, self.proj)
        attention = attention.reshape(-1, self.num_heads * self.num_taps)
        return torch.addmm(x, attention, self.value_bias).unsqueeze(1)


class TokenNorm(nn.Module):
    """A layer norm without weights, as an instance norm.

    onnxruntime takes half the time for it, or less: its layer norm was slower on two threads than
    on one (measured: docs/deployment.md).

    Args:
        norm: Its width and epsilon are taken.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        (self.channels,), self.eps = norm.normalized_shape, norm.eps
        # PyTorch's exporter cannot do without.
        self.register_buffer("one", norm.weight.new_ones(1))
        self.register_buffer("zero", norm.weight.new_zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, 1, C) or (B, H, W, C) to tokens of the same shape."""
        tokens = x if x.dim() == 3 else x.reshape(-1, 1, self.channels)
        tokens = F.instance_norm(tokens, None, None, self.one, self.zero, eps=self.eps)
        return tokens if x.dim() == 3 else tokens.view(x.shape)


def fold_norm(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[TokenNorm, nn.Linear]:
    """Move the weights of a layer norm into the linear layer that follows it."""
    folded = copy.deepcopy(linear)
    folded.weight = nn.Parameter(linear.weight * norm.weight)
    bias = linear.weight @ norm.bias
    folded.bias = nn.Parameter(bias if linear.bias is None else linear.bias + bias)
    return TokenNorm(norm), folded


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
