"""Whether anybody looks at the parts of a module."""

from torch import nn
from torch.nn.modules import module as nn_module

# Those of all modules and, with an underscore before them, those of one.
_KINDS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def is_watched(module: nn.Module) -> bool:
    """Whether a part of a module has hooks, of its own or those of all modules.

    Whoever looks at a part is to see whole maps: modules that work in pieces don't then.
    """
    return any(getattr(nn_module, f"_global_{kind}") for kind in _KINDS) or any(
        getattr(part, f"_{kind}")
        for part in module.modules()
        if part is not module
        for kind in _KINDS
    )
