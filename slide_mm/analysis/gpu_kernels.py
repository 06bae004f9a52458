"""The GPU kernels, looked at without a GPU: what they move, and what they compile to."""

import itertools
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from slide_mm.analysis.attention_contenders import Shape
from slide_mm.engine.markdown import format_table
from slide_mm.ops import gpu_kernel
from slide_mm.ops.backends import keep_attention

# A100; L4, L40S and RTX 40; H100 and H200; RTX 50.
CAPABILITIES = (80, 89, 90, 120)


class Launch(NamedTuple):
    """One launch of a kernel, with its arguments by name."""

    name: str
    num_programs: int
    arguments: dict[str, Any]

    def count_bytes(self) -> int:
        """Bytes that must be read or written: those of each tensor, once."""
        tensors = [x for x in self.arguments.values() if isinstance(x, Tensor)]
        return sum(x.numel() * x.element_size() for x in tensors)


class Resources(NamedTuple):
    """What a compiled kernel takes.

    Attributes:
        registers: Of a thread.
        stack: Bytes of memory that a thread uses for want of registers.
        shared: Bytes of shared memory of a program.
    """

    registers: int
    stack: int
    shared: int


def record_launches(
    shape: Shape, dtype: torch.dtype, kernel_size: int = 3
) -> tuple[list[Launch], list[Launch]]:
    """Launches of forward and of backward, with meta tensors.

    Args:
        shape: Of query, key and value, which are packed.
        dtype: Their type.
        kernel_size: Side K of the neighbourhood.
    """
    taps = kernel_size**2
    qkv = torch.empty(*shape[:3], 3, *shape[3:], dtype=dtype, device="meta")
    query, key, value = qkv.unbind(3)
    weights = [
        qkv.new_empty(size)
        for size in ((shape.head_dim, taps, taps), (shape.head_dim, taps), (shape.num_heads, taps))
    ]
    arguments = query, key, value, *weights, 1.0, keep_attention(query, weights[0])
    launches: list[Launch] = []

    def record(name: str, num_programs: int, /, **arguments: Any) -> None:
        launches.append(Launch(name, num_programs, arguments))

    with patch.object(gpu_kernel, "_run", record):
        output = gpu_kernel.forward(*arguments)
        num_forward = len(launches)
        gpu_kernel.backward(*arguments, output, torch.empty_like(qkv).unbind(3))
    return launches[:num_forward], launches[num_forward:]


def specialise(launch: Launch) -> tuple[dict[str, str], dict, dict]:
    """What a launch's compiled kernel depends on: signature, constants and attributes."""
    from slide_mm.ops import triton_kernels

    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(getattr(triton_kernels, launch.name).params):
        value = launch.arguments[parameter.name]
        signature[parameter.name] = _type_of(value, parameter)
        if signature[parameter.name] == "constexpr":
            constants[place,] = value
        elif isinstance(value, Tensor) or (_depends_on(value, parameter) and value % 16 == 0):
            attributes[place,] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile a kernel as a launch would, for an NVIDIA GPU that need not be there.

    Args:
        launch: The launch, of :func:`record_launches`.
        capability: The GPU's compute capability, such as 90 for 9.0.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from slide_mm.ops import triton_kernels

    source = ASTSource(getattr(triton_kernels, launch.name), *specialise(launch))
    options = {x: launch.arguments[x] for x in ("num_warps", "num_stages") if x in launch.arguments}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Resources(*_read_usage(compiled.asm["cubin"]), compiled.metadata.shared)


def _depends_on(value: Any, parameter: Any) -> bool:
    """Whether Triton compiles anew for another number."""
    return isinstance(value, int) and not parameter.do_not_specialize


def _type_of(value: Any, parameter: Any) -> str:
    """Triton's name for the type of an argument."""
    if parameter.is_constexpr or value is None or (_depends_on(value, parameter) and value == 1):
        return "constexpr"
    if isinstance(value, Tensor):
        types = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
        return types[value.dtype]
    return "fp32" if isinstance(value, float) else parameter.annotation_type or "i32"


def _read_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack of a compiled kernel, which NVIDIA's program beside Triton tells."""
    import triton.backends.nvidia

    program = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [program, "-res-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack)


def format_resources(head_dims: Sequence[int], dtypes: Sequence[torch.dtype]) -> str:
    """Registers and spilled bytes of all kernels of K = 3, for ``CAPABILITIES``, as a table."""
    lines = []
    for dtype, head_dim in itertools.product(dtypes, head_dims):
        forward, backward = record_launches(Shape(1, 200, 320, 3, head_dim), dtype)
        for launch in forward + backward:
            cells = [compile_launch(launch, capability) for capability in CAPABILITIES]
            lines.append(
                [
                    *(str(dtype).removeprefix("torch."), str(head_dim), launch.name),
                    *(f"{x.registers}" + f" + {x.stack} B" * bool(x.stack) for x in cells),
                ]
            )
    header = ["type", "d", "kernel", *(f"sm_{capability}" for capability in CAPABILITIES)]
    return format_table(header, lines)
