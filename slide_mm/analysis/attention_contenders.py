"""Local attentions on the same query, key and value, to be compared."""

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slide_mm.analysis.benchmark import backward_of
from slide_mm.engine.timing import forward_of
from slide_mm.layers.downsampling import pad_to_multiple
from slide_mm.layers.window_attention import (
    merge_windows,
    partition_windows,
    relative_position_index,
    shifted_window_mask,
)
from slide_mm.ops import slide_attention_qkvpacked
from slide_mm.ops.backends import TABLE, why_not
from slide_mm.ops.compat import HAS_FLEX_ATTENTION
from slide_mm.ops.reference import published

KERNEL_SIZE, WINDOW_SIZE = 3, 7
SLIDE = ("published", *TABLE)
# Attention to the same neighbourhood, without the deformed path; NATTEN's stays in the image.
FLEX = "flex attention"
NATTEN = "NATTEN"
WINDOW = "window attention"
_FLEX_BLOCK = 128


class Shape(NamedTuple):
    """Size of query, key and value: (B, H, W, num_heads, head_dim)."""

    batch: int
    height: int
    width: int
    num_heads: int
    head_dim: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


class Inputs(NamedTuple):
    """What all contenders compute with.

    Attributes:
        qkv: (B, H, W, 3, num_heads, head_dim), as a layer's projection makes it.
        shift: The fixed shifts as depth-wise kernels, (head_dim, K*K, K, K).
        deformed_kernel: The learned path, of the same shape.
        bias: Its bias, (head_dim, K*K).
        position_bias: (num_heads, K*K).
        window_bias: Window attention's table of relative positions.
    """

    qkv: Tensor
    shift: Tensor
    deformed_kernel: Tensor
    bias: Tensor
    position_bias: Tensor
    window_bias: Tensor


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32) -> Inputs:
    """Random inputs, which need gradients, except for the shifts."""
    batch, height, width, num_heads, head_dim = shape
    taps = KERNEL_SIZE**2
    square = KERNEL_SIZE, KERNEL_SIZE
    shift = torch.eye(taps, device=device).to(dtype).view(taps, *square)
    random = partial(torch.randn, device=device, dtype=dtype)
    return Inputs(
        random(batch, height, width, 3, num_heads, head_dim).requires_grad_(),
        shift.repeat(head_dim, 1, 1, 1),
        random(head_dim, taps, *square).mul_(0.2).requires_grad_(),
        random(head_dim, taps).requires_grad_(),
        random(num_heads, taps).requires_grad_(),
        random((2 * WINDOW_SIZE - 1) ** 2, num_heads).requires_grad_(),
    )


def list_contenders(device: torch.device, dtype: torch.dtype = torch.float32) -> list[str]:
    """Names of all that run on a device, with heads as wide as those of the models."""
    tensors = [torch.empty(0, 32, device=device, dtype=dtype)]
    missing = {name for name in TABLE if why_not(name, tensors, KERNEL_SIZE)}
    missing |= set() if HAS_FLEX_ATTENTION else {FLEX}
    missing |= set() if device.type == "cuda" and find_spec("natten") else {NATTEN}
    return [name for name in (WINDOW, *SLIDE, FLEX, NATTEN) if name not in missing]


def has_backward(name: str, device: torch.device) -> bool:
    """Whether a contender can be trained with; flex attention can't be on a CPU."""
    return name != FLEX or device.type != "cpu"


def make_contender(name: str, inputs: Inputs) -> Callable[[], Tensor]:
    """A function that computes (B, H, W, num_heads, head_dim) from the inputs.

    What a model would keep between calls, such as masks, is made here.
    """
    if name == WINDOW:
        return _window_attention(inputs)
    if name == FLEX:
        return _flex_attention(inputs)
    if name == NATTEN:
        return _natten(inputs)
    if name == "published":
        return partial(published, *inputs[:-1])
    qkv, shift, deformed_kernel, bias, position_bias, _ = inputs
    return lambda: slide_attention_qkvpacked(
        qkv, shift + deformed_kernel, bias, position_bias, backend=name
    )


def build_runs(
    name: str, shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward, and forward and backward, on new inputs; both have run on a small image."""
    small, real = (
        make_inputs(size, device, dtype)
        for size in (shape._replace(batch=1, height=8, width=8), shape)
    )
    for run in _runs(name, small):
        run()
    return _runs(name, real)


def _runs(name: str, inputs: Inputs) -> tuple[Callable[[], None], Callable[[], None]]:
    function = make_contender(name, inputs)
    trained = [x for x in inputs if x.requires_grad]
    both = backward_of(function, trained) if has_backward(name, inputs.qkv.device) else lambda: None
    return forward_of(function), both


def _window_attention(inputs: Inputs) -> Callable[[], Tensor]:
    """Attention in shifted windows: padding, shift, partition, attention, and all of it undone."""
    batch, height, width, _, num_heads, head_dim = inputs.qkv.shape
    index = relative_position_index(WINDOW_SIZE).flatten().to(inputs.qkv.device)
    size = tuple(side + -side % WINDOW_SIZE for side in (height, width))
    shifts = 2 * (WINDOW_SIZE // 2,)
    mask = shifted_window_mask(size, WINDOW_SIZE, shifts, inputs.qkv.dtype, inputs.qkv.device)
    tokens = WINDOW_SIZE**2

    def attend() -> Tensor:
        x = pad_to_multiple(inputs.qkv.flatten(3), WINDOW_SIZE)
        x = partition_windows(x.roll([-shift for shift in shifts], (1, 2)), WINDOW_SIZE)
        x = x.view(-1, tokens, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
        bias = inputs.window_bias[index].view(tokens, tokens, num_heads).permute(2, 0, 1)
        bias = (bias + mask.unsqueeze(1)).repeat(batch, 1, 1, 1)
        x = F.scaled_dot_product_attention(*x, bias).transpose(1, 2)
        x = merge_windows(x.reshape(batch, -1, tokens, num_heads * head_dim), WINDOW_SIZE, size)
        x = x.roll(shifts, (1, 2))[:, :height, :width]
        return x.unflatten(-1, (num_heads, head_dim))

    return attend


def _flex_attention(inputs: Inputs) -> Callable[[], Tensor]:
    """PyTorch's flex attention, compiled, to the K x K neighbours inside the image."""
    from torch.nn.attention import flex_attention

    height, width = inputs.qkv.shape[1:3]
    radius = KERNEL_SIZE // 2

    def is_near(batch, head, query, key):
        rows, columns = query // width - key // width, query % width - key % width
        return (rows.abs() <= radius) & (columns.abs() <= radius)

    pixels = height * width
    first = torch.arange(0, pixels, _FLEX_BLOCK)
    bands = torch.arange(-radius, radius + 1) * width
    lowest = (first[:, None] + bands - radius).clamp(0, pixels - 1) // _FLEX_BLOCK
    highest = (first[:, None] + _FLEX_BLOCK - 1 + bands + radius).clamp(0, pixels - 1)
    block = torch.arange(math.ceil(pixels / _FLEX_BLOCK))
    near = (lowest[..., None] <= block) & (block <= highest[..., None] // _FLEX_BLOCK)
    near = near.any(1).int().to(inputs.qkv.device)
    block_mask = flex_attention.BlockMask.from_kv_blocks(
        near.sum(1, dtype=torch.int32)[None, None],
        near.argsort(dim=1, descending=True, stable=True).int()[None, None],
        BLOCK_SIZE=_FLEX_BLOCK,
        mask_mod=is_near,
        seq_lengths=(pixels, pixels),
    )
    attend = torch.compile(flex_attention.flex_attention, dynamic=False)

    def run() -> Tensor:
        query, key, value = inputs.qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)
        out = attend(query, key, value, block_mask=block_mask)
        return out.transpose(1, 2).unflatten(1, (height, width))

    return run


def _natten(inputs: Inputs) -> Callable[[], Tensor]:
    """NATTEN's fused attention to K x K neighbours, which it chooses inside the image."""
    from natten.functional import na2d

    return lambda: na2d(*inputs.qkv.unbind(3), kernel_size=KERNEL_SIZE)


def parse_shape(text: str, named: dict[str, Shape]) -> Shape:
    """Look a shape up by name, or read it as in 1x200x320x3x32.

    Raises:
        ValueError: If it is neither.
    """
    if text in named:
        return named[text]
    sides: list[Any] = text.split("x")
    if len(sides) != 5 or not all(side.isdigit() and int(side) > 0 for side in sides):
        known = ", ".join(named)
        raise ValueError(
            f"shape {text!r}: give one of {known}, or BxHxWxHEADSxHEAD_DIM like 1x200x320x3x32"
        )
    return Shape(*map(int, sides))
