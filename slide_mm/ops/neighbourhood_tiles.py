"""Neighbourhood attention by matrix products, a band of rows at a time.

Queries beside each other share most of their keys. A band of rows is cut into tiles of queries; a
tile attends to all keys that any of its queries has, and a bias of -inf hides from each query those
that are not its own. With dilation, positions of one residue class are neighbours of each other
alone.

Tokens are first laid out tile by tile, (B, num_heads, tiles, rows, columns of a tile, head_dim),
with the classes of rows one after the other: any rows of a tile are then one matrix, without a
copy. The logits of no more than a band are held, and backward computes them again.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from slide_mm.ops.memory import new_empty

# Rows and columns of a tile's queries. In larger tiles, queries share more keys and hide more of
# them; products of smaller ones are slow. On other devices each band costs launches.
_CPU_TILE, _OTHER_TILE = (2, 8), (8, 8)
# Bytes of a band's logits, of several images if they are small.
_CPU_CHUNK, _OTHER_CHUNK = 2 << 20, 256 << 20


def forward(qkv: Tensor, position_bias: Tensor, dilation: int, scale: float) -> Tensor:
    """See :func:`slide_mm.ops.neighbourhood_attention.neighbourhood_attention`."""
    output = new_empty(qkv, qkv[:, :, :, 0].shape)
    layout = _Layout(qkv, position_bias, dilation)
    bias = _Bias(position_bias, layout)
    for images in layout.chunks(len(qkv)):
        query, key, value = layout.lay_out_all(qkv[images], scale)
        for band in layout.bands:
            queries, keys = layout.rows(band)
            weights = _weigh(query[:, queries], key[:, keys], bias.of(band))
            query[:, queries] = weights @ value[:, keys]
        layout.gather(query, "queries", output[images])
    return output


def backward(
    qkv: Tensor, position_bias: Tensor, dilation: int, scale: float, output_grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of qkv and of the position bias."""
    gradient = new_empty(qkv, qkv.shape)
    layout = _Layout(qkv, position_bias, dilation)
    bias = _Bias(position_bias, layout)
    for images in layout.chunks(len(qkv)):
        query, key, value = layout.lay_out_all(qkv[images], scale)
        output = layout.lay_out(output_grad[images], "queries")
        key_grad, value_grad = (new_empty(x, x.shape).zero_() for x in (key, value))
        for band in layout.bands:
            queries, keys = layout.rows(band)
            weights = _weigh(query[:, queries], key[:, keys], bias.of(band))
            value_grad[:, keys].add_(weights.mT @ output[:, queries])
            logits = output[:, queries] @ value[:, keys].mT
            logits = torch._softmax_backward_data(logits, weights, -1, weights.dtype)
            bias.add_gradient(band, logits)
            key_grad[:, keys].add_(logits.mT @ query[:, queries])
            query[:, queries] = logits @ key[:, keys]
        of_query, of_key, of_value = gradient[images].unbind(3)
        layout.gather(query.mul_(scale), "queries", of_query)
        layout.gather(key_grad, "keys", of_key)
        layout.gather(value_grad, "keys", of_value)
    return gradient, bias.gradient()


def _weigh(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Attention weights of tiles, whose bias is that of every image."""
    logits = query @ key.mT
    logits.unflatten(0, (-1, len(bias))).add_(bias)
    return logits.softmax(-1)


class _Piece(NamedTuple):
    """Queries that follow each other in a residue class of a side, and what keys they have.

    Attributes:
        residue: The class: positions residue, residue + dilation, ...
        members: How many it has.
        queries: Their numbers in the class.
        keys: Likewise.
        overlap: How many of the keys the piece before has, too.
    """

    residue: int
    members: int
    queries: range
    keys: range
    overlap: int


def _cut(length: int, size: int, kernel_size: int, dilation: int) -> list[_Piece]:
    """Cut a side into pieces of ``size`` queries or fewer."""
    pieces = []
    for residue in range(dilation):
        members, reached = len(range(residue, length, dilation)), 0
        for first in range(0, members, size):
            queries = range(first, min(first + size, members))
            first_keys = (
                min(max(query - kernel_size // 2, 0), members - kernel_size)
                for query in (queries[0], queries[-1])
            )
            keys = range(next(first_keys), next(first_keys) + kernel_size)
            pieces.append(_Piece(residue, members, queries, keys, max(reached - keys.start, 0)))
            reached = keys.stop
    return pieces


class _Layout:
    """How maps of one size are cut into tiles and laid out.

    Args:
        qkv: (B, H, W, 3, num_heads, head_dim).
        position_bias: (num_heads, 2K - 1, 2K - 1).
        dilation: Step from neighbour to neighbour.

    Attributes:
        bands: Pieces of the height.
        tiles: Pieces of the width.
        columns: The most ``'queries'``, and the most ``'keys'``, of a tile's row; others have zeros
            behind theirs.
        dtype: What is computed with.
    """

    def __init__(self, qkv: Tensor, position_bias: Tensor, dilation: int) -> None:
        self._height = qkv.shape[1]
        self._num_heads, self._head_dim = qkv.shape[-2:]
        self._dilation = dilation
        on_cpu = qkv.device.type == "cpu"
        self._most_bytes = _CPU_CHUNK if on_cpu else _OTHER_CHUNK
        tile = _CPU_TILE if on_cpu else _OTHER_TILE
        self.dtype = torch.promote_types(qkv.dtype, torch.float32)
        self.kernel_size = (position_bias.shape[-1] + 1) // 2
        self.bands, self.tiles = (
            _cut(length, size, self.kernel_size, dilation)
            for length, size in zip(qkv.shape[1:3], tile, strict=True)
        )
        self.columns = {
            side: max(len(getattr(tile, side)) for tile in self.tiles)
            for side in ("queries", "keys")
        }
        self._classes, end = [], 0
        for residue in range(dilation):
            first, end = end, end + len(range(residue, self._height, dilation))
            self._classes.append(slice(first, end))

    def chunks(self, batch: int) -> Iterator[slice]:
        """So many images that the logits of a band are few enough."""
        most = max(len(band.queries) * len(band.keys) for band in self.bands)
        pairs = most * self.columns["queries"] * self.columns["keys"]
        image = self._num_heads * len(self.tiles) * pairs * self.dtype.itemsize
        size = max(1, self._most_bytes // image)
        return (slice(first, first + size) for first in range(0, batch, size))

    def lay_out_all(self, qkv: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Lay out query, which is scaled, key and value."""
        query, key, value = qkv.unbind(3)
        query = self.lay_out(query, "queries").mul_(scale)
        return query, self.lay_out(key, "keys"), self.lay_out(value, "keys")

    def lay_out(self, x: Tensor, side: str) -> Tensor:
        """Lay (B, H, W, num_heads, head_dim) out as the queries, or the keys, of all tiles.

        Returns:
            (B * num_heads * tiles, H * columns of a tile, head_dim).
        """
        shape = len(x) * self._num_heads * len(self.tiles), self._height * self.columns[side]
        laid = new_empty(x.new_empty(0, dtype=self.dtype), (*shape, self._head_dim))
        if any(len(getattr(tile, side)) < self.columns[side] for tile in self.tiles):
            laid.zero_()
        for _, here, there in self._places(x, side, laid):
            there.copy_(here)
        return laid

    def gather(self, laid: Tensor, side: str, x: Tensor) -> None:
        """Undo :meth:`lay_out`: write into ``x`` the sum of what is laid out of each token."""
        for tile, here, there in self._places(x, side, laid):
            overlap = tile.overlap if side == "keys" else 0
            here[..., :overlap, :].add_(there[..., :overlap, :])
            here[..., overlap:, :].copy_(there[..., overlap:, :])

    def _places(
        self, x: Tensor, side: str, laid: Tensor
    ) -> Iterator[tuple[_Piece, Tensor, Tensor]]:
        """Yield the columns of each tile and class of rows, in ``x`` and laid out."""
        shape = len(x), self._num_heads, len(self.tiles), self._height, self.columns[side], -1
        x, laid = x.permute(0, 3, 1, 2, 4), laid.view(shape)
        for index, tile in enumerate(self.tiles):
            numbers = getattr(tile, side)
            members = range(tile.residue, x.shape[3], self._dilation)[numbers.start : numbers.stop]
            columns = slice(members.start, members.stop, members.step)
            for residue, rows in enumerate(self._classes):
                here = x[:, :, residue :: self._dilation, columns]
                yield tile, here, laid[:, :, index, rows, : len(numbers)]

    def rows(self, band: _Piece) -> Iterator[slice]:
        """Where a band's queries, and its keys, are in the second dimension of what is laid out."""
        first = self._classes[band.residue].start
        for side, columns in self.columns.items():
            numbers = getattr(band, side)
            yield slice((first + numbers.start) * columns, (first + numbers.stop) * columns)


class _Pattern(NamedTuple):
    """Which keys of a tile are a query's own, and how far they lie: the same for many bands.

    Attributes:
        index: Places in the table, (tiles, queries, keys).
        bias: What is there, (num_heads * tiles, queries, keys).
        gradient: That of ``bias``.
    """

    index: Tensor
    bias: Tensor
    gradient: Tensor


class _Bias:
    """What is added to the logits of tiles.

    Args:
        position_bias: (num_heads, 2K - 1, 2K - 1).
        layout: How maps are cut.
    """

    def __init__(self, position_bias: Tensor, layout: _Layout) -> None:
        self._shape, self._kernel_size = position_bias.shape, layout.kernel_size
        table = position_bias.flatten(1).to(layout.dtype)
        # Behind the last is what hides a key.
        self._table = torch.cat([table, torch.full_like(table[:, :1], -torch.inf)], 1)
        columns = [self._offsets(tile, *layout.columns.values()) for tile in layout.tiles]
        self._columns = torch.stack(columns)[:, None, :, None]
        self._patterns: dict[tuple[int, ...], _Pattern] = {}

    def of(self, band: _Piece) -> Tensor:
        """The bias of a band's tiles, (num_heads * tiles, queries, keys)."""
        return self._pattern(band).bias

    def add_gradient(self, band: _Piece, gradient: Tensor) -> None:
        """Add the gradient of a band's logits, of several images."""
        total = self._pattern(band).gradient
        for image in gradient.split(len(total)):
            total += image

    def gradient(self) -> Tensor:
        """The gradient of the position bias."""
        gradient = torch.zeros_like(self._table)
        for pattern in self._patterns.values():
            by_head = pattern.gradient.view(len(gradient), -1)
            gradient.index_add_(1, pattern.index.flatten(), by_head)
        return gradient[:, :-1].reshape(self._shape)

    def _pattern(self, band: _Piece) -> _Pattern:
        radius = self._kernel_size // 2
        before, behind = band.queries.start, band.members - band.queries.stop
        # Windows are shifted near the ends alone.
        key = len(band.queries), min(before, radius), min(behind, radius)
        if key not in self._patterns:
            rows = self._offsets(band, len(band.queries), len(band.keys))[:, None, :, None]
            index = rows * self._shape[-1] + self._columns
            hidden = self._table.shape[1] - 1
            index = torch.where((rows < 0) | (self._columns < 0), hidden, index)
            index = index.flatten(3).flatten(1, 2)
            bias = self._table[:, index].flatten(0, 1)
            self._patterns[key] = _Pattern(index, bias, torch.zeros_like(bias))
        return self._patterns[key]

    def _offsets(self, piece: _Piece, num_queries: int, num_keys: int) -> Tensor:
        """Key - query + K - 1 of neighbours, -1 of others: (num_queries, num_keys)."""
        arange = partial(torch.arange, device=self._table.device)
        # Queries behind the last are its like: none may have no keys.
        query = (arange(num_queries)[:, None] + piece.queries.start).clamp(max=piece.queries[-1])
        key = arange(num_keys) + piece.keys.start
        first = (query - self._kernel_size // 2).clamp(0, piece.members - self._kernel_size)
        is_neighbour = (first <= key) & (key < first + self._kernel_size)
        return torch.where(is_neighbour, key - query + self._kernel_size - 1, -1)
