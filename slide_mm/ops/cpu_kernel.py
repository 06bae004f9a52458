"""Slide Attention on a CPU by a compiled kernel, ``slide_attention.cpp``, float32.

The kernel is one C++ file without dependencies. The machine's own C++ compiler builds it for this
very processor when it is first needed, in a few seconds, into the user's cache directory; where
that is impossible, ``is_available()`` is False and ``unavailable_reason()`` says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

KERNEL_SIZES = (3, 5, 7)

_logger = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("slide_attention.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp")
# Gradients of the weights are summed in parts, each by one thread: at most so many over all heads,
# and none smaller than so many pixels. Results must not depend on the number of threads.
_MAX_PARTS = 64
_MIN_PART_PIXELS = 512


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4))


class _Arguments(ctypes.Structure):
    """Mirrors ``Arguments`` in slide_attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kernel_size", "batch", "height", "width")),
        *((name, ctypes.c_int64) for name in ("heads", "channels", "threads")),
        *((name, _Tensor) for name in ("query", "key", "value", "output")),
        *((name, ctypes.c_void_p) for name in ("key_weight", "value_weight", "attention")),
        *((name, _Tensor) for name in ("query_grad", "key_grad", "value_grad")),
        ("logits_grad", ctypes.c_void_p),
        ("chunks", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("key_weight_grad", "value_weight_grad")),
    )


def is_available() -> bool:
    """Whether the kernel is, or can be, compiled here. The first call of all compiles it."""
    return unavailable_reason() is None


@torch.compiler.assume_constant_result
def unavailable_reason() -> str | None:
    """Why there is no compiled kernel on this machine, in one line; None when there is one."""
    library = _load_library()
    return library if isinstance(library, str) else None


def why_not(tensors: Sequence[Tensor], kernel_size: int) -> str | None:
    """Why the kernel can't take this call, in a few words; None when it can."""
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "needs tensors on the CPU"
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return "needs float32"
    if kernel_size not in KERNEL_SIZES:
        return f"needs K in {KERNEL_SIZES}, not {kernel_size}"
    if torch.jit.is_tracing():
        return "cannot be traced"
    return unavailable_reason()


def slide_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Slide Attention, forward and backward, as the other forms in this package compute it.

    Args:
        query: (B, H, W, num_heads, head_dim), float32, on a CPU, in any memory layout; so are
            ``key`` and ``value``. They are read without a copy where channels are contiguous.
        key: As ``query``.
        value: As ``query``.
        kernel: (head_dim, K * K, K, K), K in ``KERNEL_SIZES``: the merged kernel.
        bias: (head_dim, K * K) or None.
        position_bias: (num_heads, K * K) or None.
        scale: Factor of the logits.

    Returns:
        (B, H, W, num_heads, head_dim), contiguous.

    Raises:
        RuntimeError: If the kernel can't be compiled here.
    """
    return _attend([query, key, value], query.shape[3], kernel, bias, position_bias, scale)


def slide_attention_packed(
    qkv: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """``slide_attention`` on query, key and value in one tensor, (B, H, W, 3, num_heads, head_dim).

    The gradient is one tensor too: gradients of three parts would be written, then copied together.
    """
    return _attend([qkv], qkv.shape[4], kernel, bias, position_bias, scale)


def _attend(
    inputs: list[Tensor],
    num_heads: int,
    kernel: Tensor,
    bias: Tensor | None,
    position_bias: Tensor | None,
    scale: float,
) -> Tensor:
    # The compiled kernel knows one kind of weight, (head_dim, taps, K * K): the bias is the weight
    # of one more tap that reads the constant 1, and scale and position bias go into the keys' own.
    weight = kernel.flatten(2).transpose(1, 2)
    if bias is None:
        bias = kernel.new_zeros(kernel.shape[:2])
    value_weight = torch.cat((weight, bias[:, None]), dim=1)
    key_bias = bias if position_bias is None else bias + position_bias[:, None]
    key_bias = key_bias.expand(num_heads, *bias.shape)
    key_weight = torch.cat((weight.expand(num_heads, *weight.shape), key_bias[:, :, None]), dim=2)
    key_weight = scale * key_weight
    differentiable = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (*inputs, key_weight, value_weight)
    )
    return _forward(inputs, key_weight, value_weight, keep_attention=differentiable)[0]


# In these operators ``inputs`` are query, key and value, or the one tensor that holds all three.


@torch.library.custom_op("slide_mm::slide_attention", mutates_args=(), device_types="cpu")
def _forward(
    inputs: Sequence[Tensor], key_weight: Tensor, value_weight: Tensor, keep_attention: bool
) -> tuple[Tensor, Tensor]:
    output, attention = _empty_outputs(inputs, key_weight, value_weight, keep_attention)
    query, key, value = map(_channels_contiguous, _unpack(inputs))
    weights = key_weight.contiguous(), value_weight.contiguous()
    if output.numel():
        _call("slide_attention_forward", _arguments(query, key, value, output, *weights, attention))
    return output, attention


@_forward.register_fake
def _empty_outputs(
    inputs: Sequence[Tensor], key_weight: Tensor, value_weight: Tensor, keep_attention: bool
) -> tuple[Tensor, Tensor]:
    query = _unpack(inputs)[0]
    batch, height, width, num_heads, _ = query.shape
    attention_shape = (batch, num_heads, value_weight.shape[-1], height, width)
    attention = query.new_empty(attention_shape if keep_attention else 0)
    return query.new_empty(query.shape), attention


@torch.library.custom_op("slide_mm::slide_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    inputs: Sequence[Tensor],
    key_weight: Tensor,
    value_weight: Tensor,
    attention: Tensor,
    output_grad: Tensor,
) -> tuple[list[Tensor], Tensor, Tensor]:
    query, key, value, output_grad = map(_channels_contiguous, (*_unpack(inputs), output_grad))
    weights = key_weight.contiguous(), value_weight.contiguous()
    gradients = [tensor.new_empty(tensor.shape) for tensor in inputs]
    logits_grad = torch.empty_like(attention)
    batch, height, width, num_heads, _ = query.shape
    chunks = math.ceil(min(_MAX_PARTS / num_heads, batch * height * width / _MIN_PART_PIXELS))
    key_weight_grad = query.new_zeros((num_heads, chunks, *value_weight.shape))
    value_weight_grad = torch.zeros_like(key_weight_grad)

    if query.numel():
        arguments = _arguments(query, key, value, output_grad, *weights, attention)
        parts = map(_tensor, _unpack(gradients))
        arguments.query_grad, arguments.key_grad, arguments.value_grad = parts
        arguments.logits_grad = logits_grad.data_ptr()
        arguments.chunks = chunks
        arguments.key_weight_grad = key_weight_grad.data_ptr()
        arguments.value_weight_grad = value_weight_grad.data_ptr()
        _call("slide_attention_backward", arguments)
    return gradients, key_weight_grad.sum(1), value_weight_grad.sum((0, 1))


@_backward.register_fake
def _empty_gradients(
    inputs: Sequence[Tensor],
    key_weight: Tensor,
    value_weight: Tensor,
    attention: Tensor,
    output_grad: Tensor,
) -> tuple[list[Tensor], Tensor, Tensor]:
    gradients = [tensor.new_empty(tensor.shape) for tensor in inputs]
    weights = (tensor.new_empty(tensor.shape) for tensor in (key_weight, value_weight))
    return gradients, *weights


def _save_for_backward(ctx, inputs, output) -> None:
    tensors, key_weight, value_weight, _ = inputs
    ctx.save_for_backward(*tensors, key_weight, value_weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, output_grad: Tensor, _) -> tuple[list[Tensor], Tensor, Tensor, None]:
    *inputs, key_weight, value_weight, attention = ctx.saved_tensors
    return *_backward(inputs, key_weight, value_weight, attention, output_grad), None


_forward.register_autograd(_gradients, setup_context=_save_for_backward)


def _refuse_double_backward(ctx, *_) -> None:
    raise RuntimeError(
        "the compiled Slide Attention kernel has no second derivative: use backend='conv'"
    )


_backward.register_autograd(_refuse_double_backward)


def _unpack(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors[0].unbind(3) if len(tensors) == 1 else tensors


def _channels_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _tensor(tensor: Tensor) -> _Tensor:
    return _Tensor(tensor.data_ptr(), (ctypes.c_int64 * 4)(*tensor.stride()[:4]))


def _arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    attention: Tensor,
) -> _Arguments:
    return _Arguments(
        math.isqrt(value_weight.shape[-1]),
        *query.shape,
        torch.get_num_threads(),
        *map(_tensor, (query, key, value, output)),
        *(tensor.data_ptr() for tensor in (key_weight, value_weight, attention)),  # null if empty
    )


def _call(function: str, arguments: _Arguments) -> None:
    library = _load_library()
    if isinstance(library, str):
        raise RuntimeError(f"no compiled Slide Attention kernel: {library}")
    getattr(library, function)(ctypes.byref(arguments))


@functools.cache
def _load_library() -> ctypes.CDLL | str:
    """The kernel, compiled if its like isn't cached yet, or the reason why there is none."""
    try:
        library = ctypes.CDLL(str(_build()))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        _logger.info("no compiled Slide Attention kernel: %s", reason)
        return reason.splitlines()[0]
    for function in ("slide_attention_forward", "slide_attention_backward"):
        getattr(library, function).restype = None
    return library


def _build() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: install g++ or name one in CXX")
    command = [*shlex.split(compiler), *_FLAGS]
    sources = [str(_SOURCE), *_loaded_openmp()]
    # The predefined macros tell the compiler, its version and what this processor can do.
    macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    key = hashlib.sha256("\0".join((*command, *sources, macros, _SOURCE.read_text())).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slide_mm"
    library = cache / f"slide_attention-{key.hexdigest()[:16]}.so"
    if not library.exists():
        _logger.info("compiling the Slide Attention kernel, once, into %s", cache)
        cache.mkdir(parents=True, exist_ok=True)
        # Processes that build at the same time each have their own file; the last one stays.
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            built = Path(directory) / library.name
            _run([*command, *sources, "-o", str(built)])
            built.replace(library)
    return library


def _loaded_openmp() -> list[str]:
    """PyTorch's OpenMP runtime, to share its threads: those of two would fight for the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    return re.findall(r"/\S*/lib(?:gomp|iomp5|omp)\b\S*", maps.read_text())[:1]


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
