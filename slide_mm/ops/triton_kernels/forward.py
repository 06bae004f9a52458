"""The kernel of the forward pass."""

import triton
import triton.language as tl

from slide_mm.ops.triton_kernels.tiles import (
    SIZES,
    is_inside,
    list_pixels,
    load_key_bias,
    load_pixels,
    load_weight,
    locate,
)


@triton.jit(do_not_specialize=SIZES)
def forward(
    query,
    key,
    value,
    weight,
    position_bias,
    output,
    attention,
    scale,
    height,
    width,
    heads,
    stride_b: tl.int64,
    stride_y: tl.int64,
    stride_x: tl.int64,
    stride_h: tl.int64,
    kernel_size: tl.constexpr,
    head_dim: tl.constexpr,
    slots: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
):
    """Output and, unless ``attention`` is None, attention weights, of one tile."""
    taps: tl.constexpr = kernel_size * kernel_size
    radius: tl.constexpr = kernel_size // 2
    head = tl.program_id(0) % heads
    image, top, left = locate(tl.program_id(0) // heads, height, width, rows, columns)
    down, right = list_pixels(rows, columns)
    inside = is_inside(top + down, left + right, height, width)
    start = image * stride_b + head * stride_h + top * stride_y + left * stride_x
    steps = down * stride_y.to(tl.int32) + right * stride_x.to(tl.int32)
    tap = tl.arange(0, slots)

    queries = load_pixels(query, start, steps, inside, head_dim)
    mixing = tl.trans(load_key_bias(weight, position_bias, head, taps, head_dim, slots))
    logits = tl.dot(queries, mixing, input_precision=precision)
    for o in range(taps):
        row, column = o // kernel_size - radius, o % kernel_size - radius
        near = is_inside(top + row + down, left + column + right, height, width)
        there = start + row * stride_y + column * stride_x
        keys = load_pixels(key, there, steps, near, head_dim)
        mixing = tl.trans(load_weight(weight, o, taps, head_dim, slots))
        logits = tl.dot(queries * keys, mixing, logits, input_precision=precision)
    logits = tl.where((tap < taps)[None, :], logits * scale, -float("inf"))
    shares = tl.exp(logits - tl.max(logits, 1)[:, None])
    weights = (shares / tl.sum(shares, 1)[:, None]).to(queries.dtype)
    if attention is not None:
        first = ((image * heads + head) * height + top) * width + left
        kept = (down * width + right)[:, None] * taps + tap[None, :]
        is_kept = inside[:, None] & (tap < taps)[None, :]
        tl.store(attention + first * taps + kept, weights, mask=is_kept)

    mixing = load_weight(weight, taps, taps, head_dim, slots)
    sums = tl.dot(weights, mixing, input_precision=precision)
    for o in range(taps):
        row, column = o // kernel_size - radius, o % kernel_size - radius
        near = is_inside(top + row + down, left + column + right, height, width)
        there = start + row * stride_y + column * stride_x
        values = load_pixels(value, there, steps, near, head_dim)
        mixing = load_weight(weight, o, taps, head_dim, slots)
        sums += tl.dot(weights, mixing, input_precision=precision) * values
    first = ((image * height + top) * width + left) * heads + head
    steps = (down * width + right)[:, None] * (heads * head_dim)
    target = output + first * head_dim + (steps + tl.arange(0, head_dim)[None, :])
    tl.store(target, sums.to(queries.dtype), mask=inside[:, None])
