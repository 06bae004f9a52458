"""Reading and writing weights, converting other people's, telling whether they fit."""

from slide_mm.checkpoints.compare import CheckpointMismatchError, check_state_dict_fits
from slide_mm.checkpoints.conversion import (
    MIN_COVERAGE,
    Conversion,
    convert_checkpoint,
    convert_state_dict,
    load_pretrained,
    recognise,
)
from slide_mm.checkpoints.errors import CheckpointError
from slide_mm.checkpoints.reading import read_checkpoint
from slide_mm.checkpoints.rebuilding import is_lifeless
from slide_mm.checkpoints.report import ConversionReport
from slide_mm.checkpoints.rules import Rule, Source
from slide_mm.checkpoints.sources import SOURCES
from slide_mm.checkpoints.state_dicts import check_weights, get_state_dict, select_state_dict
from slide_mm.checkpoints.writing import FORMATS, write_checkpoint

__all__ = [
    "FORMATS",
    "MIN_COVERAGE",
    "SOURCES",
    "CheckpointError",
    "CheckpointMismatchError",
    "Conversion",
    "ConversionReport",
    "Rule",
    "Source",
    "check_state_dict_fits",
    "check_weights",
    "convert_checkpoint",
    "convert_state_dict",
    "get_state_dict",
    "is_lifeless",
    "load_pretrained",
    "read_checkpoint",
    "recognise",
    "select_state_dict",
    "write_checkpoint",
]
