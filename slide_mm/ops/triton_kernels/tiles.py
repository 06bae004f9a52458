"""What the kernels share: where tiles are, and loads."""

import triton
import triton.language as tl

# Numbers of which nothing is compiled anew.
SIZES = ("height", "width", "heads", "num_tiles", "num_parts")


@triton.jit
def locate(index, height, width, rows: tl.constexpr, columns: tl.constexpr):
    """Image, first row and first column of a tile."""
    across = tl.cdiv(width, columns)
    down = tl.cdiv(height, rows)
    image = (index // (across * down)).to(tl.int64)
    return image, index // across % down * rows, index % across * columns


@triton.jit
def list_pixels(rows: tl.constexpr, columns: tl.constexpr):
    """Row and column of each pixel in its tile."""
    pixel = tl.arange(0, rows * columns)
    return pixel // columns, pixel % columns


@triton.jit
def is_inside(y, x, height, width):
    """Whether pixels lie in the image; without its sign a negative number is a large one."""
    y, height = y.to(tl.uint32, bitcast=True), height.to(tl.uint32, bitcast=True)
    x, width = x.to(tl.uint32, bitcast=True), width.to(tl.uint32, bitcast=True)
    return (y < height) & (x < width)


@triton.jit
def load_pixels(tensor, start, steps, inside, head_dim: tl.constexpr):
    """Pixels (pixels, head_dim) that lie some steps from a first one, zero outside the image."""
    place = steps[:, None] + tl.arange(0, head_dim)[None, :]
    return tl.load(tensor + start + place, mask=inside[:, None], other=0.0)


@triton.jit
def load_weight(weight, neighbour, taps: tl.constexpr, head_dim: tl.constexpr, slots: tl.constexpr):
    """How taps mix a neighbour, (slots, head_dim)."""
    tap = tl.arange(0, slots)
    place = tap[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
    here = weight + neighbour * (taps * head_dim)
    return tl.load(here + place, mask=(tap < taps)[:, None], other=0.0)


@triton.jit
def load_key_bias(
    weight, position_bias, head, taps: tl.constexpr, head_dim: tl.constexpr, slots: tl.constexpr
):
    """What is added to keys, (slots, head_dim): the bias and that of the position."""
    tap = tl.arange(0, slots)
    position = tl.load(position_bias + head * taps + tap, mask=tap < taps, other=0.0)
    return load_weight(weight, taps, taps, head_dim, slots) + position[:, None]
