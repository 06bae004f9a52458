"""Reading other people's weights, and telling whether they fit."""

from slide_mm.checkpoints.compare import (
    CheckpointMismatchError,
    StateDictFit,
    check_state_dict_fits,
    compare_state_dicts,
)
from slide_mm.checkpoints.reading import CheckpointError, get_state_dict, read_checkpoint

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "StateDictFit",
    "check_state_dict_fits",
    "compare_state_dicts",
    "get_state_dict",
    "read_checkpoint",
]
