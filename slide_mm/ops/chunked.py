"""Slide Attention in plain PyTorch operations, a few rows of the images at a time.

Logits and output are sums over the taps o of products with the neighbour x(x + o), each mixed by a
small matrix; the bias is that of one more tap, whose neighbour is the constant 1. There are K*K
products of no more than a chunk of rows, which the caches hold. Query and whatever has its shape
are (images, rows, columns, num_heads, head_dim), attention weights and logits (..., K*K), products
and coefficients (images, rows, taps + 1, columns, num_heads, head_dim).

Rows lie outside taps so that each step divides a chunk among the threads by rows: what one core has
written stays with it, which matters most where the cores share no cache.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

# Bytes of a chunk's products, on a CPU of each thread's. There they should stay in the caches
# (measured: docs/performance.md); elsewhere they are many, as every chunk costs dozens of launches.
_CPU_CHUNK = 5 << 20
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
    """See :func:`slide_mm.ops.fused.slide_attention`, whose arguments these are.

    Args:
        attention: What :func:`backward` needs, B * K*K * H * W * num_heads elements, is written
            here, if it is given.
    """
    output = query.new_empty(query.shape)
    weight = _by_tap(kernel, bias)
    scratch = _Scratch(query)
    for chunk in _chunks(query, kernel):
        centre = _gather(query[chunk], scratch)
        neighbours = _neighbours(key, chunk, kernel, scratch)
        logits = _score(_products(centre, neighbours), scale * weight)
        logits.addcmul_(centre.sum(-1, keepdim=True), scale * position_bias)
        # Over the first dimension a softmax this small is many times as fast.
        weights = logits.movedim(-1, 0).softmax(0, dtype=_accurate(query)).movedim(0, -1)
        weights = weights.to(query.dtype).contiguous()
        if attention is not None:
            _of_chunk(attention, chunk, query).copy_(weights)
        neighbours = _neighbours(value, chunk, kernel, scratch)
        output[chunk] = _aggregate(_mix(weights, weight), neighbours)
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
    weight = _by_tap(kernel, bias)
    value_sum, key_sum, position_sum = map(_zeros_like, (weight, weight, position_bias))
    scratch = _Scratch(query)
    for chunk in _chunks(query, kernel):
        centre, weights = _gather(output_grad[chunk], scratch), _of_chunk(attention, chunk, query)
        products = _products(centre, _neighbours(value, chunk, kernel, scratch))
        weights_grad = _score(products, weight)
        value_sum += _weight_gradient(products, weights)
        del products  # Its memory, which the caches hold, is what the coefficients get.
        with _sum_of_neighbours(value_grad, chunk, kernel, scratch) as sums:
            _spread(_mix(weights, weight), centre, sums)

        logits_grad = weights * (weights_grad - (weights * weights_grad).sum(-1, keepdim=True))
        centre = _gather(query[chunk], scratch)
        neighbours = _neighbours(key, chunk, kernel, scratch)
        key_sum += _weight_gradient(_products(centre, neighbours), logits_grad)
        position_sum += (logits_grad * centre.sum(-1, keepdim=True)).sum((0, 1, 2))
        of_position = (logits_grad * (scale * position_bias)).sum(-1, keepdim=True)
        coefficients = _mix(logits_grad, scale * weight)
        with _sum_of_neighbours(key_grad, chunk, kernel, scratch) as sums:
            _spread(coefficients, centre, sums)
        query_grad[chunk] = _aggregate(coefficients, neighbours).add_(of_position)
        del coefficients
    by_channel = (value_sum + scale * key_sum).permute(2, 1, 0)
    kernel_grad, bias_grad = by_channel[..., :-1].contiguous(), by_channel[..., -1].contiguous()
    return kernel_grad, bias_grad, scale * position_sum


def _gather(centre: Tensor, scratch: "_Scratch") -> Tensor:
    """Copy what lies between others in memory: it is read once for each tap."""
    return centre if centre.is_contiguous() else scratch("centre", centre.shape).copy_(centre)


def _products(centre: Tensor, neighbours: Tensor) -> Tensor:
    """Centre times each neighbour and, for the bias, times 1."""
    images, rows, *side = neighbours.shape[:4]
    products = centre.new_empty(images, rows, math.prod(side) + 1, *centre.shape[2:])
    taps = products[:, :, :-1].unflatten(2, side)
    torch.mul(centre[:, :, None, None], neighbours, out=taps)
    products[:, :, -1] = centre
    return products


def _score(products: Tensor, weight: Tensor) -> Tensor:
    """Sum of each tap's products times its matrix of ``weight``: (..., K*K)."""
    images, rows, _, columns, num_heads, _ = products.shape
    if _convolves(products):
        scores = F.conv2d(_as_images(products), _as_kernel(weight)).permute(0, 2, 3, 1)
    else:
        scores = (products.flatten(3, 4) @ weight.mT).sum(2)
    return scores.reshape(images, rows, columns, num_heads, -1)


def _mix(weights: Tensor, weight: Tensor) -> Tensor:
    """What each neighbour, and the constant 1, is multiplied with; the transpose of _score."""
    images, rows, columns, num_heads, _ = weights.shape
    weights = weights.unsqueeze(2)
    if _convolves(weights):
        mixed = F.conv_transpose2d(_as_images(weights), _as_kernel(weight)).permute(0, 2, 3, 1)
    else:
        mixed = weights.flatten(3, 4) @ weight
    return mixed.reshape(images, rows, len(weight), columns, num_heads, -1)


def _weight_gradient(products: Tensor, scores_grad: Tensor) -> Tensor:
    """Gradient of :func:`_score` with respect to ``weight``."""
    scores_grad = scores_grad.unsqueeze(2)
    if not _convolves(products):
        return (scores_grad.flatten(3, 4).mT @ products.flatten(3, 4)).sum((0, 1))
    size = scores_grad.shape[-1], products.shape[-1], products.shape[2], 1
    gradient = conv2d_weight(_as_images(products), size, _as_images(scores_grad))
    return gradient.squeeze(-1).permute(2, 0, 1)


def _convolves(x: Tensor) -> bool:
    """Whether the taps are mixed by convolutions over them, and not by matrix products.

    On a CPU convolutions are several times as fast, for the matrices are thin (measured:
    docs/performance.md). On a GPU they might round to TF32.
    """
    return x.device.type == "cpu"


def _as_images(x: Tensor) -> Tensor:
    """Each row as a channels-last image, with a line for each tap."""
    return x.flatten(3, 4).flatten(0, 1).permute(0, 3, 1, 2)


def _as_kernel(weight: Tensor) -> Tensor:
    return weight.permute(1, 2, 0).unsqueeze(-1)


def _aggregate(coefficients: Tensor, neighbours: Tensor) -> Tensor:
    """Sum of the coefficients times the neighbours, in the memory of the last coefficients."""
    *taps, total = coefficients.unbind(2)
    for tap, neighbour in zip(taps, _by_neighbour(neighbours), strict=True):
        total.addcmul_(tap, neighbour)
    return total


def _spread(coefficients: Tensor, centre: Tensor, sums: Tensor) -> None:
    """Add to the sums of the neighbours the coefficients times the centre."""
    *taps, _ = coefficients.unbind(2)
    for tap, total in zip(taps, _by_neighbour(sums), strict=True):
        total.addcmul_(tap, centre)


def _by_neighbour(x: Tensor) -> list[Tensor]:
    return [neighbour for row in x.unbind(2) for neighbour in row.unbind(2)]


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


def _chunks(query: Tensor, kernel: Tensor) -> Iterator[_Chunk]:
    """Cut (B, H, W, ...) into whole images, several if small, or else into rows of one image."""
    if not query.numel():
        return
    batch, height = query.shape[:2]
    on_cpu = query.device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else 1
    size = _CPU_CHUNK * threads if on_cpu else _OTHER_CHUNK
    row_size = query[0, 0].numel() * query.element_size() * (kernel.shape[1] + 1)
    most_rows = max(1, size // row_size // threads) * threads
    num_images = max(1, most_rows // height)
    num_rows = math.ceil(height / math.ceil(height / most_rows) / threads) * threads
    for image in range(0, batch, num_images):
        for row in range(0, height, num_rows):
            yield slice(image, image + num_images), slice(row, min(row + num_rows, height))


def _neighbours(x: Tensor, chunk: _Chunk, kernel: Tensor, scratch: _Scratch) -> Tensor:
    """x(x + o) for every tap o, a view of a padded copy."""
    rows = _Rows.around(chunk, x.shape[1], kernel)
    padded = scratch("padded", rows.padded_shape(x[chunk].shape))
    for outside in rows.outside(padded):
        outside.zero_()
    rows.inside(padded).copy_(x[chunk[0], rows.top : rows.bottom])
    return rows.shifted(padded)


@contextmanager
def _sum_of_neighbours(
    total: Tensor, chunk: _Chunk, kernel: Tensor, scratch: _Scratch
) -> Iterator[Tensor]:
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
        radius = math.isqrt(kernel.shape[1]) // 2
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

    def shifted(self, padded: Tensor) -> Tensor:
        """What a chunk sees of a padded one at each tap: (images, rows, K, K, columns, ...)."""
        height, width = (side - 2 * self.radius for side in padded.shape[1:3])
        return padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 5, 1, 2, 6, 3, 4)


def _by_tap(kernel: Tensor, bias: Tensor) -> Tensor:
    """Kernel, and bias as one more tap: (taps + 1, taps, head_dim), taps that are read first."""
    return torch.cat((kernel, bias[..., None]), dim=-1).permute(2, 1, 0).contiguous()


def _of_chunk(attention: Tensor, chunk: _Chunk, query: Tensor) -> Tensor:
    """Attention weights of a chunk, (images, rows, columns, num_heads, taps)."""
    return attention.view(*query.shape[:-1], -1)[chunk]


def _accurate(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _zeros_like(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=_accurate(x), device=x.device)
