"""Reading weights, converting other people's, and telling whether they fit."""

from slide_mm.checkpoints.compare import (
    CheckpointMismatchError,
    StateDictFit,
    check_state_dict_fits,
    compare_state_dicts,
)
from slide_mm.checkpoints.conversion import (
    MIN_COVERAGE,
    Conversion,
    convert_state_dict,
    load_pretrained,
    recognise,
)
from slide_mm.checkpoints.reading import CheckpointError, get_state_dict, read_checkpoint
from slide_mm.checkpoints.report import ConversionReport
from slide_mm.checkpoints.sources import SOURCES

__all__ = [
    "MIN_COVERAGE",
    "SOURCES",
    "CheckpointError",
    "CheckpointMismatchError",
    "Conversion",
    "ConversionReport",
    "StateDictFit",
    "check_state_dict_fits",
    "compare_state_dicts",
    "convert_state_dict",
    "get_state_dict",
    "load_pretrained",
    "read_checkpoint",
    "recognise",
]
