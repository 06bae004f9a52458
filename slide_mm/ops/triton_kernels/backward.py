"""The kernels of the backward pass, in the order in which they run."""

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
def query_gradient(
    key,
    value,
    weight,
    position_bias,
    attention,
    output_grad,
    logits_grad,
    query_grad,
    scale,
    height,
    width,
    heads,
    stride_b: tl.int64,
    stride_y: tl.int64,
    stride_x: tl.int64,
    stride_h: tl.int64,
    grad_stride_b: tl.int64,
    grad_stride_y: tl.int64,
    grad_stride_x: tl.int64,
    grad_stride_h: tl.int64,
    kernel_size: tl.constexpr,
    head_dim: tl.constexpr,
    slots: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
):
    """Gradients of the logits, times the scale, and of the query, of one tile."""
    taps: tl.constexpr = kernel_size * kernel_size
    radius: tl.constexpr = kernel_size // 2
    head = tl.program_id(0) % heads
    image, top, left = locate(tl.program_id(0) // heads, height, width, rows, columns)
    down, right = list_pixels(rows, columns)
    inside = is_inside(top + down, left + right, height, width)
    start = image * stride_b + head * stride_h + top * stride_y + left * stride_x
    steps = down * stride_y.to(tl.int32) + right * stride_x.to(tl.int32)
    tap = tl.arange(0, slots)

    first = ((image * height + top) * width + left) * heads + head
    output_steps = (down * width + right) * (heads * head_dim)
    outputs = load_pixels(output_grad, first * head_dim, output_steps, inside, head_dim)
    mixing = tl.trans(load_weight(weight, taps, taps, head_dim, slots))
    sums = tl.dot(outputs, mixing, input_precision=precision)
    for o in range(taps):
        row, column = o // kernel_size - radius, o % kernel_size - radius
        near = is_inside(top + row + down, left + column + right, height, width)
        there = start + row * stride_y + column * stride_x
        values = load_pixels(value, there, steps, near, head_dim)
        mixing = tl.trans(load_weight(weight, o, taps, head_dim, slots))
        sums = tl.dot(outputs * values, mixing, sums, input_precision=precision)
    first = ((image * heads + head) * height + top) * width + left
    kept = first * taps + ((down * width + right)[:, None] * taps + tap[None, :])
    is_kept = inside[:, None] & (tap < taps)[None, :]
    weights = tl.load(attention + kept, mask=is_kept, other=0.0).to(tl.float32)
    logits = weights * (sums - tl.sum(weights * sums, 1)[:, None]) * scale
    logits = logits.to(outputs.dtype)
    tl.store(logits_grad + kept, logits, mask=is_kept)

    mixing = load_key_bias(weight, position_bias, head, taps, head_dim, slots)
    sums = tl.dot(logits, mixing, input_precision=precision)
    for o in range(taps):
        row, column = o // kernel_size - radius, o % kernel_size - radius
        near = is_inside(top + row + down, left + column + right, height, width)
        there = start + row * stride_y + column * stride_x
        keys = load_pixels(key, there, steps, near, head_dim)
        mixing = load_weight(weight, o, taps, head_dim, slots)
        sums += tl.dot(logits, mixing, input_precision=precision) * keys
    start = image * grad_stride_b + head * grad_stride_h
    start += top * grad_stride_y + left * grad_stride_x
    steps = down * grad_stride_y.to(tl.int32) + right * grad_stride_x.to(tl.int32)
    target = query_grad + start + (steps[:, None] + tl.arange(0, head_dim)[None, :])
    tl.store(target, sums.to(outputs.dtype), mask=inside[:, None])


@triton.jit(do_not_specialize=SIZES)
def key_and_value_gradients(
    query,
    weight,
    attention,
    output_grad,
    logits_grad,
    key_grad,
    value_grad,
    height,
    width,
    heads,
    stride_b: tl.int64,
    stride_y: tl.int64,
    stride_x: tl.int64,
    stride_h: tl.int64,
    grad_stride_b: tl.int64,
    grad_stride_y: tl.int64,
    grad_stride_x: tl.int64,
    grad_stride_h: tl.int64,
    kernel_size: tl.constexpr,
    head_dim: tl.constexpr,
    slots: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
):
    """Gradients of key and value, of one tile.

    What a pixel is to its neighbours is gathered from them: queries, output gradients, attention
    weights and gradients of the logits, of the neighbour from which tap o leads here.
    """
    taps: tl.constexpr = kernel_size * kernel_size
    radius: tl.constexpr = kernel_size // 2
    head = tl.program_id(0) % heads
    image, top, left = locate(tl.program_id(0) // heads, height, width, rows, columns)
    down, right = list_pixels(rows, columns)
    start = image * stride_b + head * stride_h + top * stride_y + left * stride_x
    steps = down * stride_y.to(tl.int32) + right * stride_x.to(tl.int32)
    first_output = ((image * height + top) * width + left) * heads + head
    output_steps = (down * width + right) * (heads * head_dim)
    first = ((image * heads + head) * height + top) * width + left
    tap = tl.arange(0, slots)
    kept = (down * width + right)[:, None] * taps + tap[None, :]
    key_sums = tl.zeros((rows * columns, head_dim), tl.float32)
    value_sums = tl.zeros((rows * columns, head_dim), tl.float32)
    for o in range(taps):
        row, column = radius - o // kernel_size, radius - o % kernel_size
        near = is_inside(top + row + down, left + column + right, height, width)
        shift = row * width + column
        there = start + row * stride_y + column * stride_x
        queries = load_pixels(query, there, steps, near, head_dim)
        there = (first_output + shift * heads) * head_dim
        outputs = load_pixels(output_grad, there, output_steps, near, head_dim)
        there = (first + shift) * taps
        is_kept = near[:, None] & (tap < taps)[None, :]
        logits = tl.load(logits_grad + there + kept, mask=is_kept, other=0.0)
        weights = tl.load(attention + there + kept, mask=is_kept, other=0.0)
        mixing = load_weight(weight, o, taps, head_dim, slots)
        key_sums += tl.dot(logits, mixing, input_precision=precision) * queries
        value_sums += tl.dot(weights, mixing, input_precision=precision) * outputs
    start = image * grad_stride_b + head * grad_stride_h
    start += top * grad_stride_y + left * grad_stride_x
    steps = down * grad_stride_y.to(tl.int32) + right * grad_stride_x.to(tl.int32)
    target = steps[:, None] + tl.arange(0, head_dim)[None, :]
    inside = is_inside(top + down, left + right, height, width)[:, None]
    kind = query.dtype.element_ty
    tl.store(key_grad + start + target, key_sums.to(kind), mask=inside)
    tl.store(value_grad + start + target, value_sums.to(kind), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def weight_gradients(
    query,
    key,
    value,
    attention,
    output_grad,
    logits_grad,
    parts,
    height,
    width,
    heads,
    num_tiles,
    num_parts,
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
    """Parts of the gradients of kernel, bias and position bias.

    A part is that of several tiles of one head. K programs compute it, each with one row of the
    neighbours, as no program has registers for all of them.
    """
    taps: tl.constexpr = kernel_size * kernel_size
    radius: tl.constexpr = kernel_size // 2
    row = tl.program_id(0) % kernel_size - radius
    part = tl.program_id(0) // kernel_size
    head = part % heads
    tap = tl.arange(0, slots)
    down, right = list_pixels(rows, columns)
    steps = down * stride_y.to(tl.int32) + right * stride_x.to(tl.int32)
    output_steps = (down * width + right) * (heads * head_dim)
    kept = (down * width + right)[None, :] * taps + tap[:, None]
    of_key = tl.zeros((slots, head_dim), tl.float32)
    of_value = tl.zeros((slots, head_dim), tl.float32)
    of_row = ()
    for _ in tl.static_range(kernel_size):
        of_row += (of_key,)
    for tile in range(part // heads, num_tiles, num_parts // heads):
        image, top, left = locate(tile, height, width, rows, columns)
        start = image * stride_b + head * stride_h + top * stride_y + left * stride_x
        first_output = ((image * height + top) * width + left) * heads + head
        first = ((image * heads + head) * height + top) * width + left
        inside = is_inside(top + down, left + right, height, width)
        is_kept = inside[None, :] & (tap < taps)[:, None]
        queries = load_pixels(query, start, steps, inside, head_dim)
        there = first_output * head_dim
        outputs = load_pixels(output_grad, there, output_steps, inside, head_dim)
        logits = tl.load(logits_grad + first * taps + kept, mask=is_kept, other=0.0)
        weights = tl.load(attention + first * taps + kept, mask=is_kept, other=0.0)
        if row == 0:
            of_key = tl.dot(logits, queries, of_key, input_precision=precision)
            of_value = tl.dot(weights, outputs, of_value, input_precision=precision)
        sums = ()
        for i in tl.static_range(kernel_size):
            column = i - radius
            near = is_inside(top + row + down, left + column + right, height, width)
            there = start + row * stride_y + column * stride_x
            keys = load_pixels(key, there, steps, near, head_dim)
            values = load_pixels(value, there, steps, near, head_dim)
            both = tl.dot(logits, queries * keys, of_row[i], input_precision=precision)
            sums += (tl.dot(weights, outputs * values, both, input_precision=precision),)
        of_row = sums

    own = parts + part.to(tl.int64) * ((taps + 1) * taps * head_dim + slots)
    target = own + tap[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
    is_tap = (tap < taps)[:, None]
    for i in tl.static_range(kernel_size):
        neighbour = (row + radius) * kernel_size + i
        tl.store(target + neighbour * (taps * head_dim), of_row[i], mask=is_tap)
    if row == 0:
        tl.store(target + taps * taps * head_dim, of_key + of_value, mask=is_tap)
        tl.store(own + (taps + 1) * taps * head_dim + tap, tl.sum(of_key, 1))


@triton.jit
def _sum(parts, first, step, num_parts, number, known, size: tl.constexpr, chunk: tl.constexpr):
    """Sum of some numbers over every step-th part, of which a chunk is read at a time."""
    sums = tl.zeros((chunk, number.shape[0]), tl.float32)
    for begin in range(first, num_parts, chunk * step):
        part = begin + tl.arange(0, chunk) * step
        place = part[:, None] * size + number[None, :]
        is_read = (part < num_parts)[:, None] & known[None, :]
        sums += tl.load(parts + place, mask=is_read, other=0.0)
    return tl.sum(sums, 0)


@triton.jit(do_not_specialize=SIZES)
def sum_parts(
    parts,
    kernel_grad,
    bias_grad,
    position_bias_grad,
    heads,
    num_parts,
    kernel_size: tl.constexpr,
    head_dim: tl.constexpr,
    slots: tl.constexpr,
    block: tl.constexpr,
    chunk: tl.constexpr,
):
    """Gradients of the weights: parts of different heads lie by turns.

    First programs that sum a block of kernel and bias over all heads, then one for each head.
    """
    taps: tl.constexpr = kernel_size * kernel_size
    size: tl.constexpr = (taps + 1) * taps * head_dim
    num_blocks: tl.constexpr = (size + block - 1) // block
    head = tl.program_id(0) - num_blocks
    if head < 0:
        number = tl.program_id(0) * block + tl.arange(0, block)
        total = _sum(parts, 0, 1, num_parts, number, number < size, size + slots, chunk)
        channel, of_tap = number % head_dim, number // head_dim % taps
        neighbour = number // (head_dim * taps)
        place = channel * taps + of_tap
        tl.store(kernel_grad + place * taps + neighbour, total, mask=neighbour < taps)
        tl.store(bias_grad + place, total, mask=neighbour == taps)
    else:
        tap = tl.arange(0, slots)
        is_tap = tap < taps
        of_head = _sum(parts, head, heads, num_parts, size + tap, is_tap, size + slots, chunk)
        tl.store(position_bias_grad + head * taps + tap, of_head, mask=is_tap)
