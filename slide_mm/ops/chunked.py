"""Slide Attention in plain PyTorch operations, a few rows of the images at a time.

Logits and output are sums over the taps o of products with the neighbour x(x + o), each mixed by a
small matrix product. A chunk of rows is so small that its tensors stay in the caches while the taps
go by, and nothing of K*K times the size of a key ever exists. Attention weights, logits and their
gradients are (K*K, pixels * num_heads) in a chunk.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

# Bytes of query in a chunk. On a CPU a few of them should fit each thread's L2 cache (measured:
# docs/performance.md); elsewhere they are large, as every chunk costs dozens of launches.
_CPU_CHUNK = 512 << 10
_OTHER_CHUNK = 128 << 20

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
    """See :func:`slide_mm.ops.fused.slide_attention`, whose arguments these are.

    Args:
        attention: What :func:`backward` needs, B * K*K * H * W * num_heads elements, is written
            here, if it is given.
    """
    output = query.new_empty(query.shape)
    kernel = _by_tap(kernel)
    scratch = _Scratch(query)
    for chunk in _chunks(query):
        shape = query[chunk].shape
        centre = torch.mul(query[chunk], scale, out=scratch("centre", shape))
        product = scratch("product", shape)
        logits = torch.mm(
            bias.t(), _flat(centre).t(), out=scratch("logits", _taps_of(kernel, shape))
        )
        _by_head(logits, position_bias).addcmul_(position_bias.t()[:, None], _channel_sums(centre))
        neighbours = _neighbours(key, chunk, kernel, scratch)
        for tap, neighbour in enumerate(neighbours):
            torch.mul(centre, neighbour, out=product)
            logits.addmm_(kernel[tap], _flat(product).t())
        weights = logits.softmax(0, dtype=_accurate(query)).to(query.dtype)
        if attention is not None:
            _of_chunk(attention, chunk, query, kernel).copy_(weights.unflatten(1, shape[:-1]))
        mixed = torch.mm(weights.t(), bias.t(), out=_flat(centre)).view(shape)
        neighbours = _neighbours(value, chunk, kernel, scratch)
        for tap, neighbour in enumerate(neighbours):
            torch.mm(weights.t(), kernel[tap], out=_flat(product))
            mixed.addcmul_(product, neighbour)
        output[chunk] = mixed
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
    kernel = _by_tap(kernel)
    query_grad, key_grad, value_grad = gradients
    kernel_sum, bias_sum, position_sum = map(_zeros_like, (kernel, bias, position_bias))
    scratch = _Scratch(query)
    for chunk in _chunks(query):
        shape = query[chunk].shape
        product = scratch("product", shape)
        weights = _of_chunk(attention, chunk, query, kernel).flatten(1)
        centre = scratch("centre", shape).copy_(output_grad[chunk])
        weights_grad = torch.mm(
            bias.t(), _flat(centre).t(), out=scratch("logits", _taps_of(kernel, shape))
        )
        bias_sum += (weights @ _flat(centre)).t()
        neighbours = _neighbours(value, chunk, kernel, scratch)
        with _sum_of_neighbours(value_grad, chunk, kernel, scratch) as sums:
            for tap, (neighbour, total) in enumerate(zip(neighbours, sums, strict=True)):
                torch.mul(centre, neighbour, out=product)
                weights_grad.addmm_(kernel[tap], _flat(product).t())
                kernel_sum[tap] += weights @ _flat(product)
                torch.mm(weights.t(), kernel[tap], out=_flat(product))
                total.addcmul_(product, centre)

        logits_grad = weights * (weights_grad - (weights * weights_grad).sum(0))
        torch.mul(query[chunk], scale, out=centre)
        bias_sum += (logits_grad @ _flat(centre)).t()
        by_head = _by_head(logits_grad, position_bias)
        position_sum += (by_head * _channel_sums(centre)).sum(1).t()
        mixed = torch.mm(logits_grad.t(), bias.t(), out=_flat(scratch("mixed", shape))).view(shape)
        mixed += (by_head * position_bias.t()[:, None]).sum(0).view(*shape[:-1], 1)
        neighbours = _neighbours(key, chunk, kernel, scratch)
        with _sum_of_neighbours(key_grad, chunk, kernel, scratch) as sums:
            for tap, (neighbour, total) in enumerate(zip(neighbours, sums, strict=True)):
                torch.mul(centre, neighbour, out=product)
                kernel_sum[tap] += logits_grad @ _flat(product)
                torch.mm(logits_grad.t(), kernel[tap], out=_flat(product))
                mixed.addcmul_(product, neighbour)
                total.addcmul_(product, centre)
        torch.mul(mixed, scale, out=query_grad[chunk])
    return kernel_sum.permute(2, 1, 0).contiguous(), bias_sum, position_sum


class _Scratch:
    """Memory that the chunks use one after the other, for fresh memory is not in the caches.

    Args:
        like: Has the type and the device.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._memory: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Give a tensor whose values are those that its name had last, or anything."""
        size = math.prod(shape)
        # The first chunk is the largest.
        if name not in self._memory:
            self._memory[name] = self._like.new_empty(size, dtype=dtype)
        return self._memory[name][:size].view(shape)


def _chunks(query: Tensor) -> Iterator[_Chunk]:
    """Cut (B, H, W, ...) into whole images, several if small, or else into rows of one image."""
    batch, height = query.shape[:2]
    on_cpu = query.device.type == "cpu"
    size = _CPU_CHUNK * torch.get_num_threads() if on_cpu else _OTHER_CHUNK
    most_rows = max(1, size // max(1, query[:1, :1].numel() * query.element_size()))
    num_images = max(1, most_rows // max(1, height))
    num_rows = math.ceil(height / math.ceil(height / most_rows)) if height else 1
    for image in range(0, batch, num_images):
        for row in range(0, height, num_rows):
            yield slice(image, image + num_images), slice(row, min(row + num_rows, height))


def _neighbours(x: Tensor, chunk: _Chunk, kernel: Tensor, scratch: _Scratch) -> list[Tensor]:
    """x(x + o) for every tap o, views of one padded copy."""
    rows = _Rows.around(chunk, x.shape[1], kernel)
    padded = scratch("padded", rows.padded_shape(x[chunk].shape))
    for outside in rows.outside(padded):
        outside.zero_()
    rows.inside(padded).copy_(x[chunk[0], rows.top : rows.bottom])
    return rows.shifted(padded)


@contextmanager
def _sum_of_neighbours(
    total: Tensor, chunk: _Chunk, kernel: Tensor, scratch: _Scratch
) -> Iterator[list[Tensor]]:
    """Give for every tap o where to add what belongs to x + o, and then add it to the total.

    Chunks come in the order of their rows: those that no chunk has reached hold nothing yet.
    """
    rows = _Rows.around(chunk, total.shape[1], kernel)
    shape = rows.padded_shape(total[chunk].shape)
    padded = scratch("sum", shape, _accurate(total)).zero_()
    yield rows.shifted(padded)
    reached = min(chunk[1].start + rows.radius, total.shape[1]) if chunk[1].start else 0
    target = total[chunk[0]]
    inside = rows.inside(padded)
    target[:, rows.top : reached] += inside[:, : reached - rows.top]
    target[:, reached : rows.bottom] = inside[:, reached - rows.top :]


class _Rows(NamedTuple):
    """Rows of an image that a chunk's neighbourhoods reach.

    Attributes:
        top: The first.
        bottom: Behind the last.
        above: Rows that they reach above the image.
        below: Rows that they reach below the image.
        radius: Half of the neighbourhood's side.
    """

    top: int
    bottom: int
    above: int
    below: int
    radius: int

    @classmethod
    def around(cls, chunk: _Chunk, height: int, kernel: Tensor) -> "_Rows":
        radius = math.isqrt(len(kernel)) // 2
        first, end = chunk[1].start - radius, chunk[1].stop + radius
        top, bottom = max(first, 0), min(end, height)
        return cls(top, bottom, top - first, end - bottom, radius)

    def padded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a chunk with its neighbours."""
        images, rows, columns, *channels = shape
        return images, rows + 2 * self.radius, columns + 2 * self.radius, *channels

    def inside(self, padded: Tensor) -> Tensor:
        """The part of a padded chunk that lies in the image."""
        height, width = padded.shape[1:3]
        return padded[:, self.above : height - self.below, self.radius : width - self.radius]

    def outside(self, padded: Tensor) -> tuple[Tensor, ...]:
        """The parts of a padded chunk that do not."""
        height, width = padded.shape[1:3]
        return (
            padded[:, :, : self.radius],
            padded[:, :, width - self.radius :],
            padded[:, : self.above],
            padded[:, height - self.below :],
        )

    def shifted(self, padded: Tensor) -> list[Tensor]:
        """For each tap, the part of a padded chunk that the chunk sees there."""
        steps = range(2 * self.radius + 1)
        height, width = (side - 2 * self.radius for side in padded.shape[1:3])
        return [padded[:, y : y + height, x : x + width] for y in steps for x in steps]


def _by_tap(kernel: Tensor) -> Tensor:
    """One matrix (taps shown, head_dim) for each tap that is read, from (head_dim, K*K, K*K)."""
    return kernel.permute(2, 1, 0).contiguous()


def _by_head(maps: Tensor, position_bias: Tensor) -> Tensor:
    return maps.unflatten(1, (-1, len(position_bias)))


def _taps_of(kernel: Tensor, shape: Sequence[int]) -> tuple[int, int]:
    return len(kernel), math.prod(shape[:-1])


def _channel_sums(x: Tensor) -> Tensor:
    return x.sum(-1).flatten(0, -2)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, -2)


def _of_chunk(attention: Tensor, chunk: _Chunk, query: Tensor, kernel: Tensor) -> Tensor:
    """Attention weights of a chunk, (taps, images, rows, columns, heads), where they are kept."""
    return attention.view(len(kernel), *query.shape[:-1])[(slice(None), *chunk)]


def _accurate(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _zeros_like(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=_accurate(x), device=x.device)
