"""Slide Attention in plain PyTorch operations, a few rows of the images at a time.

Logits and output are sums over the taps o of products with the neighbour x(x + o), each mixed by a
small matrix product. A chunk of rows is so small that its tensors stay in the caches while the taps
go by, and nothing of K*K times the size of a key ever exists. Attention weights, logits and their
gradients are (K*K, pixels * num_heads) in a chunk.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

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
    for chunk in _chunks(query):
        centre = (scale * query[chunk]).contiguous()
        buffer = torch.empty_like(centre)
        logits = bias.t() @ _flat(centre).t()
        _by_head(logits, position_bias).addcmul_(position_bias.t()[:, None], _channel_sums(centre))
        for tap, product in _products(centre, _neighbours(key, chunk, kernel), buffer):
            logits.addmm_(kernel[tap], _flat(product).t())
        weights = logits.softmax(0, dtype=_accurate(query)).to(query.dtype)
        if attention is not None:
            _of_chunk(attention, chunk, query, kernel).copy_(
                weights.unflatten(1, centre.shape[:-1])
            )
        mixed = (weights.t() @ bias.t()).view(centre.shape)
        values = _neighbours(value, chunk, kernel)
        for tap, coefficient in _coefficients(weights, kernel, buffer):
            mixed.addcmul_(coefficient, values[tap])
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
    query_grad, *others = gradients
    key_sum, value_sum, kernel_sum, bias_sum, position_sum = map(
        _zeros_like, (*others, kernel, bias, position_bias)
    )
    for chunk in _chunks(query):
        weights = _of_chunk(attention, chunk, query, kernel).flatten(1)
        centre = output_grad[chunk].contiguous()
        buffer = torch.empty_like(centre)
        weights_grad = bias.t() @ _flat(centre).t()
        bias_sum += (weights @ _flat(centre)).t()
        for tap, product in _products(centre, _neighbours(value, chunk, kernel), buffer):
            weights_grad.addmm_(kernel[tap], _flat(product).t())
            kernel_sum[tap] += weights @ _flat(product)
        for tap, coefficient in _coefficients(weights, kernel, buffer):
            _add_to_neighbours(value_sum, chunk, tap, kernel, coefficient, centre)

        logits_grad = weights * (weights_grad - (weights * weights_grad).sum(0))
        centre = (scale * query[chunk]).contiguous()
        bias_sum += (logits_grad @ _flat(centre)).t()
        by_head = _by_head(logits_grad, position_bias)
        position_sum += (by_head * _channel_sums(centre)).sum(1).t()
        keys = _neighbours(key, chunk, kernel)
        for tap, product in _products(centre, keys, buffer):
            kernel_sum[tap] += logits_grad @ _flat(product)
        mixed = (logits_grad.t() @ bias.t()).view(centre.shape)
        mixed += (by_head * position_bias.t()[:, None]).sum(0).view(*centre.shape[:-1], 1)
        for tap, coefficient in _coefficients(logits_grad, kernel, buffer):
            mixed.addcmul_(coefficient, keys[tap])
            _add_to_neighbours(key_sum, chunk, tap, kernel, coefficient, centre)
        torch.mul(mixed, scale, out=query_grad[chunk])
    for gradient, total in zip(others, (key_sum, value_sum), strict=True):
        gradient.copy_(total)
    return kernel_sum.permute(2, 1, 0).contiguous(), bias_sum, position_sum


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


def _neighbours(x: Tensor, chunk: _Chunk, kernel: Tensor) -> list[Tensor]:
    """x(x + o) for every tap o, views of one padded copy."""
    images, rows = chunk
    kernel_size = math.isqrt(len(kernel))
    radius = kernel_size // 2
    height, width = x.shape[1:3]
    top, bottom = max(rows.start - radius, 0), min(rows.stop + radius, height)
    above, below = top - (rows.start - radius), rows.stop + radius - bottom
    padded = F.pad(x[images, top:bottom], (0, 0, 0, 0, radius, radius, above, below))
    num_rows = rows.stop - rows.start
    return [
        padded[:, row : row + num_rows, column : column + width]
        for row in range(kernel_size)
        for column in range(kernel_size)
    ]


def _products(
    centre: Tensor, neighbours: list[Tensor], buffer: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Yield centre(x) x(x + o) for every tap o, all in the same buffer."""
    for tap, neighbour in enumerate(neighbours):
        yield tap, torch.mul(centre, neighbour, out=buffer)


def _coefficients(maps: Tensor, kernel: Tensor, buffer: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield sum_p W[c, p, o] maps_p(x), which multiplies x(x + o), for every tap o."""
    for tap, tap_kernel in enumerate(kernel):
        torch.mm(maps.t(), tap_kernel, out=_flat(buffer))
        yield tap, buffer


def _add_to_neighbours(
    total: Tensor, chunk: _Chunk, tap: int, kernel: Tensor, coefficient: Tensor, centre: Tensor
) -> None:
    """Add coefficient(x) centre(x) at x + o, where that lies in the image."""
    images, rows = chunk
    height, width = total.shape[1:3]
    kernel_size = math.isqrt(len(kernel))
    down, right = (side - kernel_size // 2 for side in divmod(tap, kernel_size))
    top, bottom = max(rows.start + down, 0), min(rows.stop + down, height)
    left, end = max(right, 0), min(width + right, width)
    if top >= bottom or left >= end:
        return
    first = rows.start + down
    here = slice(None), slice(top - first, bottom - first), slice(left - right, end - right)
    total[images, top:bottom, left:end].addcmul_(coefficient[here], centre[here])


def _by_tap(kernel: Tensor) -> Tensor:
    """One matrix (taps shown, head_dim) for each tap that is read, from (head_dim, K*K, K*K)."""
    return kernel.permute(2, 1, 0).contiguous()


def _by_head(maps: Tensor, position_bias: Tensor) -> Tensor:
    return maps.unflatten(1, (-1, len(position_bias)))


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
