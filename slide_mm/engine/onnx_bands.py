"""Blocks in parts that go from end to end one after the other, for ONNX files.

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

from slide_mm.layers import Block, DepthwiseConvMlp, SpatialReductionAttention

# Numbers of a map in one band: few enough for caches, enough for work on all threads (measured:
# docs/deployment.md).
_BAND_SIZE = 240 << 10
# Attention weights of some queries, likewise; OpenVINO is slower the fewer they are.
_MAX_WEIGHTS = 4 << 20
# Parts of a chunk, for its products: onnxruntime computes each matrix of a stack on one thread.
_NUM_PARTS = 8
_EXAMPLE_SIDE = 12


class BandedBlock(nn.Module):
    """A deployed block with Slide Attention; the graph has a loop over bands.

    Args:
        block: With a :class:`~slide_mm.layers.SlideAttention` as mixer, and its first norm folded
            (:func:`fold_norm`), so that what the mixer sees as 0 has keys and values of 0.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.bands = torch.jit.script(_Bands(block))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        # In the loop PyTorch's exporter loses the rank, and OpenVINO the type.
        return self.bands(x).to(x.dtype).view(x.shape)


class _Bands(nn.Module):
    """A loop over bands of rows, which overlap by what a token sees above and below it.

    In it tokens are (N, 1, C). Images, rows and columns are in the indices, so that shapes need no
    arithmetic; of tokens (N, C) linear layers would become Gemm, slower than MatMul in onnxruntime.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.kernel_size, self.margin = block.mixer.kernel_size, block.mixer.reach
        self.mlp_reach = block.mlp.reach
        self.channels = block.mixer.proj.in_features
        self.num_tokens = _BAND_SIZE // self.channels
        mlp = _Residual(block.norm2, block.mlp)
        attention = _BandOfAttention(block)
        side = _EXAMPLE_SIDE
        neighbours = self.index_neighbours(2, side, side)
        self.taps = torch.jit.trace(_Unbind(), neighbours)
        x = block.mixer.proj.weight.new_zeros(2, side, side, self.channels)
        tokens = x.view(-1, 1, self.channels)
        positions, inside = self.index_bands(x, torch.zeros(1, dtype=torch.long), side)
        example = tokens, positions[0], inside[0], self.taps(neighbours)
        self.attention = torch.jit.trace(attention, example, check_trace=False)
        self.mlp = torch.jit.trace(mlp, x if self.mlp_reach else tokens, check_trace=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width = x.shape[0], x.shape[1], x.shape[2]
        max_rows = max(1, self.num_tokens // (batch * width))
        num_bands = (height + self.mlp_reach + max_rows - 1) // max_rows
        # All of one height, below the image if need be: OpenVINO joins no others.
        num_rows = (height + self.mlp_reach + num_bands - 1) // num_bands
        first = torch.arange(num_bands) * num_rows
        positions, inside = self.index_bands(x, first, num_rows)
        taps = self.taps(self.index_neighbours(batch, num_rows, width))
        num_outside, num_inside, rows = self.index_mlp_rows(height, first, num_rows)
        last_rows = num_rows + torch.arange(2 * self.mlp_reach)
        tokens = x.reshape(-1, 1, self.channels)
        above = x.new_zeros([batch, 2 * self.mlp_reach, width, self.channels])
        like = x.new_zeros([batch, num_rows, width, self.channels])
        bands = []
        for index in range(num_bands):
            band = self.attention(tokens, positions[index], inside[index], taps)
            if self.mlp_reach > 0:
                band = torch.cat([above, band.view_as(like)], 1)
                above = band.index_select(1, last_rows)
                rows_inside = torch.arange(int(num_inside[index])) + num_outside[index]
                band = self.mlp(band.index_select(1, rows_inside)).index_select(1, rows[index])
            else:
                band = self.mlp(band).view_as(like)
            bands.append(band)
        # onnxruntime indexes on all threads, and transposes and slices on one.
        rows = torch.arange(num_bands * batch * num_rows).view([num_bands, batch, num_rows])
        rows = rows.transpose(0, 1).flatten(1).narrow(1, self.mlp_reach, height)
        return torch.stack(bands).flatten(0, 2).index_select(0, rows.flatten())

    def index_bands(self, x: Tensor, first: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """Index the tokens of bands of ``x`` that begin with the rows ``first``, with a margin.

        Returns:
            Positions (bands, N) in the flattened maps, of the nearest token for those outside them,
            and (bands, N, 1, 1), 0 for those outside and 1 for others.
        """
        batch, height, width = x.shape[0], x.shape[1], x.shape[2]
        row = first.view(-1, 1) + torch.arange(num_rows + 2 * self.margin) - self.margin
        row = row[:, None, :, None]
        column = torch.arange(width + 2 * self.margin) - self.margin
        nearest_row, nearest_column = row.clamp(0, height - 1), column.clamp(0, width - 1)
        image = torch.arange(batch).view(-1, 1, 1)
        positions = (image * height + nearest_row) * width + nearest_column
        inside = (row == nearest_row) & (column == nearest_column)
        inside = inside.to(x.dtype).expand(-1, batch, -1, -1)
        return positions.flatten(1), inside.flatten(1)[:, :, None, None]

    def index_mlp_rows(
        self, height: int, first: Tensor, num_rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Index rows of bands, with the ``2 * mlp_reach`` before them, for the MLP.

        It is given none that are outside the image, as it sees zeros there.

        Returns:
            How many rows come before the image, how many are in it, both (bands,), and which of the
            latter are the MLP's output, (bands, num_rows), from ``mlp_reach`` rows before the band;
            any for those outside the image.
        """
        above = 2 * self.mlp_reach - first
        num_outside = above.clamp(min=0)
        num_inside = (height + above).clamp(max=num_rows + 2 * self.mlp_reach) - num_outside
        rows = torch.arange(num_rows) + (self.mlp_reach - num_outside)[:, None]
        return num_outside, num_inside, rows.clamp(min=0).minimum(num_inside[:, None] - 1)

    def index_neighbours(self, batch: int, num_rows: int, width: int) -> Tensor:
        """Positions (K*K, N) in flattened bands with margins of what taps show to N tokens."""
        tap, row_size = torch.arange(self.kernel_size), width + 2 * self.margin
        row = torch.arange(batch)[:, None] * (num_rows + 2 * self.margin) + torch.arange(num_rows)
        token = row.view(-1, 1) * row_size + torch.arange(width)
        return (tap[:, None] * row_size + tap).view(-1, 1) + token.view(1, -1)


class _Unbind(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.unbind(0)


class _Residual(nn.Module):
    def __init__(self, norm: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.norm, self.branch = norm, branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x))


class _BandOfAttention(nn.Module):
    """A block's attention branch and residual connection on bands.

    The products are :func:`slide_mm.ops.reference.score_by_tap` and its transpose.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm, layer = block.norm1, block.mixer
        self.query, self.key, self.value = split_linear(layer.qkv, 3)
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
        self, tokens: Tensor, positions: Tensor, inside: Tensor, taps: tuple[Tensor, ...]
    ) -> Tensor:
        """Map tokens to those at the taps' centre; ``inside`` is 0 in margins outside the image."""
        centre, heads = taps[self.num_taps // 2], (-1, self.num_heads, self.head_dim)
        x = tokens[positions]
        residual = x[centre].reshape(-1, self.channels)
        x = self.norm(x) * inside
        query = self.query(x[centre]).reshape(heads)
        key, value = self.key(x).reshape(heads), self.value(x).reshape(heads)
        logits = query.reshape(-1, self.channels) @ self.logit_bias
        logits = logits.reshape(-1, self.num_heads, self.num_taps)
        # All products stand before their sum, in the graph too: onnxruntime walks back from the
        # result, to what stands later first, and so adds each before it computes the next.
        products = [
            (query * key[tap]) @ kernel
            for tap, kernel in zip(taps, self.score_kernel.unbind(0), strict=True)
        ]
        attention = functools.reduce(torch.add, products, logits).softmax(-1)
        products = [
            (attention @ kernel) * value[tap]
            for tap, kernel in zip(taps, self.value_kernel.unbind(0), strict=True)
        ]
        x = functools.reduce(torch.add, products).reshape(-1, self.channels)
        attention = attention.reshape(-1, self.num_heads * self.num_taps)
        return (residual + x @ self.proj + attention @ self.value_bias).unsqueeze(1)


class ChunkedReduction(nn.Module):
    """Spatial-reduction attention; the graph has a loop over queries, some at a time.

    A runtime keeps attention weights, by the square of the pixels; of some queries they are few.

    Args:
        layer: Its weights are taken.
    """

    def __init__(self, layer: SpatialReductionAttention) -> None:
        super().__init__()
        self.layer = layer
        self.chunks = torch.jit.script(_Chunks())

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        key, value = self.layer.key_and_value(x)
        heads = self.chunks(self.layer.q(x).flatten(1, 2), key, value)
        return self.layer.proj(heads.view(x.shape))


class _Chunks(nn.Module):
    """Scaled dot-product attention in a loop over queries."""

    def __init__(self) -> None:
        super().__init__()
        self.max_weights, self.num_parts = _MAX_WEIGHTS, _NUM_PARTS

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map queries (B, N, C), keys and values (B, num_heads, N', head_dim) to (B, N, C)."""
        batch, num_queries = query.shape[0], query.shape[1]
        num_heads, head_dim = key.shape[1], key.shape[3]
        max_size = max(1, self.max_weights // (batch * num_heads * key.shape[2]))
        num_chunks = (num_queries + max_size - 1) // max_size
        # All of one size, with the last query again if need be: OpenVINO joins no others.
        part_size = (num_queries + num_chunks * self.num_parts - 1) // (num_chunks * self.num_parts)
        size = self.num_parts * part_size
        parts = [batch, num_heads, self.num_parts, part_size, head_dim]
        key, value = (key.transpose(2, 3) * head_dim**-0.5).unsqueeze(2), value.unsqueeze(2)
        # Indices instead of transposes: heads' vectors as they are in queries, and in chunks.
        queries = torch.arange(num_chunks * size).clamp(0, num_queries - 1)
        rows = torch.arange(batch * num_queries * num_heads).view([batch, num_queries, num_heads])
        rows = rows.index_select(1, queries).view([batch, num_chunks, size, num_heads])
        rows = rows.permute(1, 0, 3, 2).flatten(1)
        vectors = query.reshape(-1, head_dim)
        chunks = []
        for index in range(num_chunks):
            attention = (vectors.index_select(0, rows[index]).view(parts) @ key).softmax(-1)
            chunks.append(attention @ value)
        rows = torch.arange(num_chunks * batch * num_heads * size)
        rows = rows.view([num_chunks, batch, num_heads, size]).permute(1, 0, 3, 2)
        rows = rows.reshape([batch, -1, num_heads]).narrow(1, 0, num_queries)
        heads = torch.stack(chunks).view([-1, head_dim]).index_select(0, rows.flatten())
        return heads.view(query.shape)


class TokenNorm(nn.Module):
    """A layer norm whose only weight is a bias of 1, as an instance norm.

    onnxruntime takes half the time for it, or less: its layer norm was slower on two threads than
    on one (measured: docs/deployment.md).

    Args:
        norm: Its width and epsilon are taken.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        (self.channels,), self.eps = norm.normalized_shape, norm.eps
        # Weight and bias of an instance norm; PyTorch's exporter cannot do without.
        self.register_buffer("one", norm.weight.new_ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, 1, C) or (B, H, W, C) to tokens of the same shape."""
        tokens = x if x.dim() == 3 else x.reshape(-1, 1, self.channels)
        tokens = F.instance_norm(tokens, None, None, self.one, self.one, eps=self.eps)
        return tokens if x.dim() == 3 else tokens.view_as(x)


def fold_norm(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[TokenNorm, nn.Linear]:
    """Move the weights of a layer norm into the linear layer that follows it.

    The linear layer's bias goes into its weight: normalised channels add up to 0, so that a
    constant added to a row changes nothing. With 1 added to each channel a row also adds its own
    sum, and the constant makes that the bias. An operation of its own would take time, and give a
    bias to what is masked.
    """
    weight = linear.weight * norm.weight
    bias = linear.weight @ norm.bias
    if linear.bias is not None:
        bias = bias + linear.bias
    weight = weight + ((bias - weight.sum(1)) / linear.in_features)[:, None]
    folded = copy.deepcopy(linear)
    folded.weight, folded.bias = nn.Parameter(weight), None
    return TokenNorm(norm), folded


class ConvMlp(nn.Module):
    """A depth-wise MLP of convolutions only, between which onnxruntime keeps its own layout.

    Args:
        mlp: Its weights are taken.
    """

    def __init__(self, mlp: DepthwiseConvMlp) -> None:
        super().__init__()
        self.fc1, self.fc2 = _pointwise(mlp.fc1), _pointwise(mlp.fc2)
        self.dwconv, self.act, self.reach = mlp.dwconv, mlp.act, mlp.reach

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        x = self.act(self.dwconv(self.fc1(x.permute(0, 3, 1, 2))))
        return self.fc2(x).permute(0, 2, 3, 1)


def _pointwise(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight, conv.bias = nn.Parameter(linear.weight[:, :, None, None]), linear.bias
    return conv


def split_linear(linear: nn.Linear, parts: int) -> list[nn.Linear]:
    """Layers that compute equal parts of a linear layer's output."""
    layers = [copy.deepcopy(linear) for _ in range(parts)]
    for index, layer in enumerate(layers):
        for name, parameter in linear.named_parameters():
            setattr(layer, name, nn.Parameter(parameter.detach().chunk(parts)[index].clone()))
    return layers
