"""Slide Attention in plain PyTorch operations, a few rows of the images at a time.

Logits and output are sums over the taps o of products with the neighbour x(x + o), each mixed by a
small matrix; the bias is that of one more tap, whose neighbour is the constant 1. There are K*K
products of no more than a chunk of rows, which the caches hold. Query and whatever has its shape
are (images, rows, columns, num_heads, head_dim); for matrix products, images and rows become one
dimension, and columns and heads another, pixels: logits and attention weights are (rows, taps,
pixels).

Rows lie outside taps so that each step divides a chunk among the threads by rows: what one core has
written stays with it, which matters most where the cores share no cache.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from slide_mm.ops.memory import new_empty

# Bytes of a chunk's products, on a CPU of each thread's. There they should stay in the caches
# (measured: docs/performance.md); elsewhere they are many, as every chunk costs dozens of launches.
_CPU_CHUNK = 4 << 20
_OTHER_CHUNK = 256 << 20

# Images and rows: an index of (B, H, W, ...).
_Chunk = tuple[slice, slice]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor,
    position_bias: Tensor,
    scale: float,
    attention: Tensor | None,
) -> Tensor:
    """See :class:`slide_mm.ops.backends.Backend`.

    Args:
        attention: What :func:`backward` needs, B * K*K * H * W * num_heads elements, is written
            here, if it is given.
    """
    output = new_empty(query, query.shape)
    weight, position_bias = weight_by_tap(kernel, bias), _by_pixel(position_bias, query)
    for chunk, space in _chunks(query, weight):
        torch.mul(query[chunk], scale, out=space.centre)
        space.load_neighbours(key, chunk)
        space.multiply()
        logits = space.score().addcmul_(space.sum_centre(), position_bias)
        weights = logits.softmax(1, dtype=_accurate(query)).to(query.dtype)
        if attention is not None:
            _of_chunk(attention, chunk, query).copy_(weights)
        space.load_neighbours(value, chunk)
        space.mix(space.for_each_tap(weights))
        output[chunk] = space.aggregate()
    return output


def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor,
    position_bias: Tensor,
    scale: float,
    attention: Tensor,
    output_grad: Tensor,
    gradients: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradients of query, key and value; return those of kernel, bias, position_bias."""
    query_grad, key_grad, value_grad = gradients
    num_heads = len(position_bias)
    weight, position_bias = weight_by_tap(kernel, bias), _by_pixel(position_bias, query)
    weight_sum, position_sum = _zeros_like(weight), _zeros_like(position_bias)
    for chunk, space in _chunks(query, weight):
        weights = _of_chunk(attention, chunk, query)
        space.centre.copy_(output_grad[chunk])
        space.load_neighbours(value, chunk)
        space.multiply()
        weights_grad = space.score()
        by_tap = space.for_each_tap(weights)
        weight_sum += space.weight_gradient(by_tap)
        space.mix(by_tap)
        space.spread(value_grad, chunk)

        logits_grad = weights * (weights_grad - (weights * weights_grad).sum(1, keepdim=True))
        torch.mul(query[chunk], scale, out=space.centre)
        space.load_neighbours(key, chunk)
        space.multiply()
        by_tap = space.for_each_tap(logits_grad)
        weight_sum += space.weight_gradient(by_tap)
        position_sum += (logits_grad * space.sum_centre()).sum(0)
        space.mix(by_tap)
        space.spread(key_grad, chunk)
        of_position = (logits_grad * position_bias).sum(1).view(*space.centre.shape[:-1], 1)
        torch.mul(space.aggregate().add_(of_position), scale, out=query_grad[chunk])
    by_channel = weight_sum.permute(2, 1, 0)
    kernel_grad, bias_grad = by_channel[..., :-1].contiguous(), by_channel[..., -1].contiguous()
    return kernel_grad, bias_grad, position_sum.unflatten(1, (-1, num_heads)).sum(1).T.contiguous()


class _Workspace:
    """Memory that chunks of one size use one after the other, and views of it.

    Fresh memory is in no cache, and making views takes as long as small operations.

    Args:
        like: Has the type, the device and the shape of whole images.
        weight: Kernel and bias, of :func:`weight_by_tap`.
        images: Images of a chunk.
        rows: Rows of each.

    Attributes:
        centre: What neighbours are multiplied with, (images, rows, columns, num_heads, head_dim).
    """

    def __init__(self, like: Tensor, weight: Tensor, images: int, rows: int) -> None:
        self._height, width, num_heads, head_dim = like.shape[1:]
        taps = weight.shape[1]
        side = math.isqrt(taps)
        self._radius = side // 2
        self._size = images * rows, taps + 1
        self._weight = weight.repeat(images * rows, 1, 1)
        self._scores = like.new_empty(len(self._weight), taps, width * num_heads)

        self.centre = like.new_empty(images, rows, width, num_heads, head_dim)
        sides = rows + 2 * self._radius, width + 2 * self._radius
        # Columns outside the image stay zero.
        self._padded = like.new_zeros(images, *sides, num_heads, head_dim)
        shifted = self._shifted(self._padded)
        self._neighbours = _by_neighbour(shifted)
        self._sums = torch.empty_like(self._padded, dtype=_accurate(like))
        self._sums_by_neighbour = _by_neighbour(self._shifted(self._sums))

        # First the products are here, then the coefficients that neighbours are multiplied with.
        by_tap = like.new_empty(images, rows, taps + 1, width, num_heads, head_dim)
        *self._by_tap, self._last = by_tap.unbind(2)
        self._matrices = by_tap.view(len(self._weight), -1, head_dim)
        products = by_tap[:, :, :-1].unflatten(2, (side, side))
        self._factors = self.centre[:, :, None, None], shifted, products

    def load_neighbours(self, x: Tensor, chunk: _Chunk) -> None:
        """Copy what a chunk's neighbourhoods reach, with zeros around the image."""
        rows, above, below = self._reach(chunk)
        if above:
            self._padded[:, :above].zero_()
        if below:
            self._padded[:, -below:].zero_()
        self._inside(self._padded, above, below).copy_(x[chunk[0], rows])

    def multiply(self) -> None:
        """Centre times each neighbour and, for the bias, times 1."""
        centre, neighbours, products = self._factors
        torch.mul(centre, neighbours, out=products)
        self._last.copy_(centre[:, :, 0, 0])

    def score(self) -> Tensor:
        """Sum of each tap's products times its matrix: (rows, taps, pixels)."""
        torch.bmm(self._weight, self._matrices.mT, out=self._scores)
        return self._scores.unflatten(0, self._size).sum(1)

    def for_each_tap(self, weights: Tensor) -> Tensor:
        """Copy weights, (rows, taps, pixels), for all taps of a row."""
        return weights.unsqueeze(1).expand(-1, self._size[1], -1, -1).flatten(0, 1)

    def weight_gradient(self, scores_grad: Tensor) -> Tensor:
        """Gradient of :meth:`score` with respect to the weight, by its gradient for each tap."""
        return torch.bmm(scores_grad, self._matrices).unflatten(0, self._size).sum(0)

    def mix(self, weights: Tensor) -> None:
        """Turn weights, for each tap, into coefficients; the transpose of :meth:`score`."""
        torch.bmm(weights.mT, self._weight, out=self._matrices)

    def aggregate(self) -> Tensor:
        """Sum of the coefficients times the neighbours, in the memory of the last coefficients."""
        for tap, neighbour in zip(self._by_tap, self._neighbours, strict=True):
            self._last.addcmul_(tap, neighbour)
        return self._last

    def spread(self, total: Tensor, chunk: _Chunk) -> None:
        """Add to the total of each neighbour its coefficient times the centre.

        Chunks come in the order of their rows: those that no chunk has reached hold nothing yet.
        """
        self._sums.zero_()
        for tap, neighbour in zip(self._by_tap, self._sums_by_neighbour, strict=True):
            neighbour.addcmul_(tap, self.centre)
        rows, above, below = self._reach(chunk)
        start = chunk[1].start
        reached = min(start + self._radius, self._height) if start else 0
        inside, target = self._inside(self._sums, above, below), total[chunk[0]]
        target[:, rows.start : reached].add_(inside[:, : reached - rows.start])
        target[:, reached : rows.stop].copy_(inside[:, reached - rows.start :])

    def sum_centre(self) -> Tensor:
        """Sum over the channels, (rows, 1, pixels)."""
        return self.centre.sum(-1).view(self._size[0], 1, -1)

    def _reach(self, chunk: _Chunk) -> tuple[slice, int, int]:
        """Rows of the image that neighbourhoods reach, and how many above and below it."""
        first, end = chunk[1].start - self._radius, chunk[1].stop + self._radius
        top, bottom = max(first, 0), min(end, self._height)
        return slice(top, bottom), top - first, end - bottom

    def _inside(self, padded: Tensor, above: int, below: int) -> Tensor:
        """The part of a padded chunk that lies in the image."""
        height, width = padded.shape[1:3]
        return padded[:, above : height - below, self._radius : width - self._radius]

    def _shifted(self, padded: Tensor) -> Tensor:
        """What a chunk sees of a padded one at each tap: (images, rows, K, K, columns, ...)."""
        height, width = (side - 2 * self._radius for side in padded.shape[1:3])
        return padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 5, 1, 2, 6, 3, 4)


def _chunks(query: Tensor, weight: Tensor) -> Iterator[tuple[_Chunk, _Workspace]]:
    """Cut (B, H, W, ...) into whole images, several if small, or else into rows of one image."""
    if not query.numel():
        return
    batch, height = query.shape[:2]
    on_cpu = query.device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else 1
    size = _CPU_CHUNK * threads if on_cpu else _OTHER_CHUNK
    row_size = query[0, 0].numel() * query.element_size() * len(weight)
    most_rows = max(1, size // row_size // threads) * threads
    num_images = max(1, most_rows // height)
    num_rows = math.ceil(height / math.ceil(height / most_rows) / threads) * threads
    shape = None
    for image in range(0, batch, num_images):
        for row in range(0, height, num_rows):
            images = slice(image, min(image + num_images, batch))
            rows = slice(row, min(row + num_rows, height))
            before, shape = shape, (images.stop - image, rows.stop - row)
            if shape != before:
                space = _Workspace(query, weight, *shape)
            yield (images, rows), space


def _by_neighbour(x: Tensor) -> list[Tensor]:
    return [neighbour for row in x.unbind(2) for neighbour in row.unbind(2)]


def weight_by_tap(kernel: Tensor, bias: Tensor) -> Tensor:
    """Kernel, and bias as one more tap: (taps + 1, taps, head_dim), taps that are read first."""
    return torch.cat((kernel, bias[..., None]), dim=-1).permute(2, 1, 0).contiguous()


def _by_pixel(position_bias: Tensor, query: Tensor) -> Tensor:
    """Position bias of the pixels of a row, (taps, columns * num_heads)."""
    return position_bias.T.repeat(1, query.shape[2])


def _of_chunk(attention: Tensor, chunk: _Chunk, query: Tensor) -> Tensor:
    """Attention weights of a chunk, (rows, taps, pixels)."""
    batch, height, width, num_heads, _ = query.shape
    return attention.view(batch, height, -1, width * num_heads)[chunk].flatten(0, 1)


def _accurate(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _zeros_like(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=_accurate(x), device=x.device)
