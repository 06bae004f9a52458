"""Blocks on a CPU, a piece of the map at a time.

At high resolution the system gives fresh memory for every tensor of a whole map, and touching it
takes longer than some of the work (measured: docs/performance.md). Pieces use memory that the
process already has. All that knows about this is here; :class:`~slide_mm.models.backbone.Stage`
calls it.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from slide_mm.layers import Block
from slide_mm.ops import compat
from slide_mm.ops.memory import new_empty

# Bytes of an MLP's hidden channels at a time: in a piece of tokens, and in a band of rows.
_PIECE = 8 << 20
_BAND = 16 << 20
# Bands compute the rows around them twice, so they have many more of their own.
_MIN_ROWS = 16
# Bytes of all hidden channels beyond which bands are quicker, by what the MLP's tokens see.
_BANDED_FROM = {0: 256 << 20, 1: 32 << 20}

# Hooks of all modules and, with an underscore before them, those of one.
_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """Compute ``block(x)`` for tokens (B, H, W, C), in pieces where that is quicker."""
    if not _may_be_cut(block, x):
        return block(x)
    batch, height, width, _ = x.shape
    reach, token = block.mlp.reach, block.mlp.fc1.out_features * x.element_size()
    row = batch * width * token
    trains = block.training or torch.is_grad_enabled()
    if hasattr(block.mixer, "reach") and not trains and row * height > _BANDED_FROM[reach]:
        return run_in_bands(block, x, max(_BAND // row, _MIN_ROWS))
    if reach:
        return block(x)
    x = block.local(x)
    x = x + block.drop_path(block.token_branch(x))
    pieces = x.flatten(0, 2).split(max(1, _PIECE // token))
    branch = torch.cat([block.channel_branch(piece) for piece in pieces]).view(x.shape)
    return x + block.drop_path(branch)


def run_in_bands(block: Block, x: Tensor, num_rows: int) -> Tensor:
    """Compute ``block(x)`` for ``num_rows`` at a time, without gradients or dropping."""
    height = x.shape[1]
    margin = block.mixer.reach + getattr(block.local, "reach", 0)
    output = new_empty(x, x.shape)
    for first in range(0, height, num_rows):
        rows = slice(first, min(first + num_rows, height))
        seen = _widen(rows, block.mlp.reach, height)
        all_seen = _widen(seen, margin, height)
        band = block.local(x[:, all_seen])
        branch = block.token_branch(band)
        inside = _inside(seen, all_seen)
        band = band[:, inside] + branch[:, inside]
        branch = block.channel_branch(band)
        inside = _inside(rows, seen)
        torch.add(band[:, inside], branch[:, inside], out=output[:, rows])
    return output


def _may_be_cut(block: nn.Module, x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and type(x) is Tensor  # No fake one.
        and not (compat.is_compiling() or compat.is_recorded())
        and type(block) is Block
        and getattr(block.mlp, "reach", None) in _BANDED_FROM
        and not _is_watched(block)
    )


def _is_watched(block: nn.Module) -> bool:
    """Whether a block or a part has hooks, which are to see whole maps."""
    return any(getattr(nn_module, f"_global_{kind}") for kind in _HOOKS) or any(
        getattr(part, f"_{kind}") for part in block.modules() for kind in _HOOKS
    )


def _widen(rows: slice, reach: int, height: int) -> slice:
    return slice(max(rows.start - reach, 0), min(rows.stop + reach, height))


def _inside(rows: slice, others: slice) -> slice:
    """Where rows are among others."""
    return slice(rows.start - others.start, rows.stop - others.start)
