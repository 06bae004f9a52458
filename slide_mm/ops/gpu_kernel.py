"""Slide Attention on a GPU by fused kernels, ``triton_kernels/``.

Forward is one of them. Backward is four: gradients of logits and query; of key and value; parts of
those of the weights; and the sums of these parts. Triton is imported, and compiles a kernel for a
type, a head width and a layout, when they are first met; never for a size.
"""

import functools
import logging
import math
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slide_mm.ops.chunked import weight_by_tap
from slide_mm.ops.compat import allows_tf32

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (16, 32, 64, 128)

_logger = logging.getLogger(__name__)
# The first GPUs whose tensor cores know bfloat16 and tf32.
_OLDEST_CAPABILITY = 8, 0
# The first Triton whose loops carry tuples.
_OLDEST_TRITON = 3, 3
# Gradients of the weights are summed in parts: at most so many, and none of fewer tiles.
_MAX_PARTS = 512
_MIN_TILES = 20
# Steps of a loop that are under way at a time: one is loaded while another is computed.
_NUM_STAGES = 2
# Numbers that one program sums, and parts that it reads at a time.
_SUMMED = {"block": 32, "chunk": 64}


class Tiling(NamedTuple):
    """Rows and columns of a program's pixels, and the warps that share them."""

    rows: int
    columns: int
    num_warps: int

    def count(self, query: Tensor) -> int:
        """Tiles of one head, of all images."""
        batch, height, width = query.shape[:3]
        return batch * math.ceil(height / self.rows) * math.ceil(width / self.columns)


class Tilings(NamedTuple):
    """How each kernel is cut."""

    forward: Tiling
    query_gradient: Tiling
    key_and_value_gradients: Tiling
    weight_gradients: Tiling


_LARGE, _SMALL = Tiling(8, 8, 4), Tiling(4, 8, 4)
# By the side K, the head's width and the bytes of a number: whatever the size of the map, and so
# that no kernel needs more registers than a GPU has (counted: docs/performance.md).
_TILINGS = {
    (3, 16, 2): Tilings(_LARGE, _LARGE, _LARGE, _SMALL),
    (3, 32, 2): Tilings(_LARGE, _LARGE, _LARGE, _LARGE),
    (3, 64, 2): Tilings(Tiling(8, 8, 8), Tiling(8, 8, 8), _SMALL, _SMALL),
    (3, 128, 2): Tilings(_SMALL, _SMALL, _SMALL, Tiling(4, 8, 8)),
    (3, 16, 4): Tilings(_LARGE, _LARGE, _LARGE, Tiling(4, 4, 4)),
    (3, 32, 4): Tilings(_LARGE, _LARGE, _SMALL, _SMALL),
    (3, 64, 4): Tilings(_SMALL, _SMALL, _SMALL, Tiling(4, 8, 8)),
    (3, 128, 4): Tilings(Tiling(4, 4, 8), Tiling(4, 4, 8), Tiling(4, 8, 8), Tiling(4, 4, 8)),
    **dict.fromkeys(
        ((5, 16, 2), (5, 32, 2), (5, 64, 2), (5, 128, 2), (7, 16, 2), (7, 32, 2)),
        Tilings(_SMALL, _SMALL, _SMALL, Tiling(4, 4, 8)),
    ),
}


def why_not(tensors: Sequence[Tensor], kernel_size: int) -> str | None:
    """Why the kernels can't take this call, in a few words; None when they can."""
    tokens = tensors[0]
    if tokens.device.type != "cuda" and not is_interpreted():
        return "needs a GPU"
    if tokens.dtype not in _DTYPES:
        return "needs float32, float16 or bfloat16"
    if tokens.dtype == torch.bfloat16 and is_interpreted():
        return "is interpreted, without bfloat16"
    head_dim = tokens.shape[-1]
    if head_dim not in HEAD_DIMS:
        return f"needs head_dim in {HEAD_DIMS}, not {head_dim}"
    if (kernel_size, head_dim, tokens.element_size()) not in _TILINGS:
        return f"has too few registers for K = {kernel_size}, head_dim {head_dim} in {tokens.dtype}"
    return unavailable_reason(tokens.device.index)


@torch.compiler.assume_constant_result
def is_interpreted() -> bool:
    """Whether Triton interprets kernels, on tensors of a CPU: to find mistakes without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def unavailable_reason(index: int | None) -> str | None:
    """Why there are no kernels for a GPU, in a few words; None when there are.

    Args:
        index: The GPU's number; None where Triton interprets.
    """
    return _find_reason(index)


@functools.cache
def _find_reason(index: int | None) -> str | None:
    reason = _missing_gpu(index) or _missing_triton()
    if reason:
        _logger.warning(
            "Slide Attention on this GPU runs without its fused kernels: 'triton' %s", reason
        )
    return reason


def _missing_gpu(index: int | None) -> str | None:
    if index is None:
        return None
    if not torch.cuda.is_available():
        return "needs a GPU"
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and capability < _OLDEST_CAPABILITY:
        oldest, here = (".".join(map(str, x)) for x in (_OLDEST_CAPABILITY, capability))
        return f"needs a GPU of compute capability {oldest}, not {here}"
    return None


def _missing_triton() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"needs Triton ({error})"
    if tuple(map(int, triton.__version__.split(".")[:2])) < _OLDEST_TRITON:
        return f"needs Triton {'.'.join(map(str, _OLDEST_TRITON))}, not {triton.__version__}"
    return None


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
        attention: What :func:`backward` needs, B * num_heads * H * W * K*K elements, is written
            here, if it is given.
    """
    output = query.new_empty(query.shape)
    if output.numel():
        query, key, value = _with_equal_strides(query, key, value)
        _launch(
            "forward",
            query,
            kernel,
            query=query,
            key=key,
            value=value,
            weight=weight_by_tap(kernel, bias),
            position_bias=position_bias.contiguous(),
            output=output,
            attention=attention,
            scale=scale,
        )
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
    if not query.numel():
        return tuple(map(torch.zeros_like, (kernel, bias, position_bias)))
    query, key, value = _with_equal_strides(query, key, value)
    query_grad, key_grad, value_grad = gradients
    weight, position_bias = weight_by_tap(kernel, bias), position_bias.contiguous()
    seen = {
        "attention": attention,
        "output_grad": output_grad.contiguous(),
        "logits_grad": torch.empty_like(attention),
    }
    grad_strides = _strides("grad_stride", query_grad)
    _launch(
        "query_gradient",
        query,
        kernel,
        key=key,
        value=value,
        weight=weight,
        position_bias=position_bias,
        query_grad=query_grad,
        scale=scale,
        **seen,
        **grad_strides,
    )
    _launch(
        "key_and_value_gradients",
        query,
        kernel,
        query=query,
        weight=weight,
        key_grad=key_grad,
        value_grad=value_grad,
        **seen,
        **grad_strides,
    )
    return _weight_gradients(query, key, value, kernel, seen)


def _weight_gradients(
    query: Tensor, key: Tensor, value: Tensor, kernel: Tensor, seen: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of kernel, bias and position bias: first in parts, each of tiles of one head."""
    num_heads, (head_dim, taps, _) = query.shape[-2], kernel.shape
    num_tiles = _tiling("weight_gradients", query, kernel).count(query)
    num_strips = max(1, min(num_tiles // _MIN_TILES, _MAX_PARTS // num_heads))
    num_parts = num_strips * num_heads
    size = (taps + 1) * taps * head_dim
    parts = query.new_empty((num_parts, size + _filled(taps)), dtype=torch.float32)
    _launch(
        "weight_gradients",
        query,
        kernel,
        num_parts * math.isqrt(taps),
        query=query,
        key=key,
        value=value,
        parts=parts,
        num_tiles=num_tiles,
        num_parts=num_parts,
        **seen,
    )
    kernel_grad = kernel.new_empty(kernel.shape)
    bias_grad = kernel.new_empty(head_dim, taps)
    position_bias_grad = kernel.new_empty(num_heads, taps)
    _run(
        "sum_parts",
        math.ceil(size / _SUMMED["block"]) + num_heads,
        parts=parts,
        kernel_grad=kernel_grad,
        bias_grad=bias_grad,
        position_bias_grad=position_bias_grad,
        heads=num_heads,
        num_parts=num_parts,
        **_shape_constants(kernel),
        **_SUMMED,
    )
    return kernel_grad, bias_grad, position_bias_grad


def _with_equal_strides(*tensors: Tensor) -> Sequence[Tensor]:
    """Tensors as they are, or copies where their channels are apart or their strides differ."""
    strides = {tensor.stride() for tensor in tensors}
    if len(strides) == 1 and tensors[0].stride(-1) == 1:
        return tensors
    return [tensor.contiguous() for tensor in tensors]


def _strides(prefix: str, tensor: Tensor) -> dict[str, int]:
    return dict(zip((f"{prefix}_{x}" for x in "byxh"), tensor.stride(), strict=False))


def _tiling(name: str, query: Tensor, kernel: Tensor) -> Tiling:
    key = math.isqrt(kernel.shape[1]), query.shape[-1], query.element_size()
    return getattr(_TILINGS[key], name)


def _filled(taps: int) -> int:
    """The power of two that taps are filled up to; a tensor core takes 16."""
    return max(16, 1 << (taps - 1).bit_length())


def _shape_constants(kernel: Tensor) -> dict[str, int]:
    head_dim, taps, _ = kernel.shape
    return {"kernel_size": math.isqrt(taps), "head_dim": head_dim, "slots": _filled(taps)}


def _launch(
    name: str, query: Tensor, kernel: Tensor, num_programs: int | None = None, /, **arguments: Any
) -> None:
    """Run a kernel on tiles. Default: one program for each tile of each head."""
    _, height, width, num_heads, _ = query.shape
    tiling = _tiling(name, query, kernel)
    _run(
        name,
        num_programs or tiling.count(query) * num_heads,
        height=height,
        width=width,
        heads=num_heads,
        **arguments,
        **_strides("stride", query),
        **_shape_constants(kernel),
        rows=tiling.rows,
        columns=tiling.columns,
        precision=_precision(query.dtype),
        num_warps=tiling.num_warps,
        num_stages=_NUM_STAGES,
    )


def _precision(dtype: torch.dtype) -> str:
    """How tensor cores multiply: float32 in three products of tf32, or one if that is allowed."""
    if dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32" if allows_tf32() else "tf32x3"


def _run(name: str, num_programs: int, **arguments: Any) -> None:
    device = next(x.device for x in arguments.values() if isinstance(x, Tensor))
    with torch.cuda.device(device if device.type == "cuda" else -1):
        getattr(_kernels(), name)[(num_programs,)](**arguments)


def _kernels() -> ModuleType:
    from slide_mm.ops import triton_kernels

    return triton_kernels
