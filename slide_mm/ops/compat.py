"""What PyTorch 2.1, the oldest that is supported, has under another name or not at all."""

from collections.abc import Callable

import torch
from torch.utils import flop_counter


def _register_flop_formula(operator: Callable) -> Callable[[Callable], Callable]:
    return lambda formula: flop_counter.flop_mapping.setdefault(operator, formula)


# Whether torch.compile or torch.export looks at what runs.
if hasattr(torch.compiler, "is_compiling"):
    is_compiling = torch.compiler.is_compiling
else:
    is_compiling = torch._utils.is_compiling


# Dynamo takes is_exporting() for true whenever it compiles, unless it calls the function itself.
@torch.compiler.assume_constant_result
def is_recorded() -> bool:
    """Whether operations are written down for readers who know PyTorch's own alone.

    They are by torch.export, and by MMEngine's counter of operations, which traces.
    """
    return is_exporting() or torch.jit.is_tracing()


# Whether torch.export looks at what runs; older versions don't tell.
is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)

# Decorates what FlopCounterMode counts an operator with.
register_flop_formula = getattr(flop_counter, "register_flop_formula", _register_flop_formula)

# Attention to any neighbourhood.
HAS_FLEX_ATTENTION = torch.__version__ >= (2, 5)


def allows_tf32() -> bool:
    """Whether matrix products in float32 may round their factors to tf32."""
    matmul = torch.backends.cuda.matmul
    try:
        return matmul.fp32_precision == "tf32"
    except AttributeError:  # Before PyTorch 2.9.
        return matmul.allow_tf32
