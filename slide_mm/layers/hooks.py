"""Whether anybody looks at the parts of a module."""

from torch import nn
from torch.nn.modules import module as nn_module


def is_watched(module: nn.Module) -> bool:
    """Whether a part of a module has hooks, of its own or those of all modules.

    Whoever looks at a part is to see whole maps: modules that work in pieces don't then.
    """
    return nn_module._has_any_global_hook() or any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        for part in module.modules()
        if part is not module
    )
