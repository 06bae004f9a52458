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

from slide_mm.ops.memory import new_empty

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
    reason = unavailable_reason()
    return None if reason is None else f"has no kernel here ({reason})"


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

    Query, key and value are read without a copy where their channels are contiguous.

    Args:
        attention: What :func:`backward` needs, B * K*K * H * W * num_heads elements, is written
            here, if it is given.

    Raises:
        RuntimeError: If the kernel can't be compiled here.
    """
    output = new_empty(query, query.shape)
    weights = _weights(kernel, bias, position_bias, scale)
    tensors = [_channels_contiguous(x) for x in (query, key, value)]
    if output.numel():
        _call("slide_attention_forward", _arguments(*tensors, output, *weights, attention))
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
    batch, height, width, num_heads, _ = query.shape
    weights = _weights(kernel, bias, position_bias, scale)
    tensors = [_channels_contiguous(x) for x in (query, key, value, output_grad)]
    logits_grad = new_empty(attention, attention.shape)
    chunks = math.ceil(min(_MAX_PARTS / num_heads, batch * height * width / _MIN_PART_PIXELS))
    key_weight_grad = query.new_zeros((num_heads, chunks, *weights[1].shape))
    value_weight_grad = torch.zeros_like(key_weight_grad)
    if query.numel():
        arguments = _arguments(*tensors, *weights, attention)
        arguments.query_grad, arguments.key_grad, arguments.value_grad = map(_tensor, gradients)
        arguments.logits_grad = logits_grad.data_ptr()
        arguments.chunks = chunks
        arguments.key_weight_grad = key_weight_grad.data_ptr()
        arguments.value_weight_grad = value_weight_grad.data_ptr()
        _call("slide_attention_backward", arguments)
    key_weight_grad = scale * key_weight_grad.sum(1)
    both = key_weight_grad.sum(0) + value_weight_grad.sum((0, 1))
    kernel_grad = both[:, :-1].transpose(1, 2).contiguous()
    return kernel_grad, both[:, -1].contiguous(), key_weight_grad[:, :, -1].sum(1)


def _weights(
    kernel: Tensor, bias: Tensor, position_bias: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Weights of keys and of values, (heads, head_dim, taps, K * K) and (head_dim, taps, K * K).

    The compiled kernel knows one kind of weight: the bias is that of one more tap, which reads the
    constant 1, and scale and position bias go into the keys' own.
    """
    value_weight = torch.cat((kernel.transpose(1, 2), bias[:, None]), dim=1)
    key_weight = scale * value_weight.repeat(len(position_bias), 1, 1, 1)
    key_weight[:, :, -1] += scale * position_bias[:, None]
    return key_weight, value_weight


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
    attention: Tensor | None,
) -> _Arguments:
    return _Arguments(
        math.isqrt(value_weight.shape[-1]),
        *query.shape,
        torch.get_num_threads(),
        *map(_tensor, (query, key, value, output)),
        *(x if x is None else x.data_ptr() for x in (key_weight, value_weight, attention)),
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
    # A compiler's path may have spaces, and a command options.
    command = [compiler] if shutil.which(compiler) else shlex.split(compiler)
    command += _FLAGS
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
    # The sixth field of a line is a file, and may have spaces.
    fields = [line.split(maxsplit=5) for line in maps.read_text().splitlines()]
    files = [Path(line[5]) for line in fields if len(line) == 6]
    return [str(file) for file in files if re.match(r"lib(gomp|iomp5|omp)\b", file.name)][:1]


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
