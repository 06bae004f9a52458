"""Converting checkpoints."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from slide_mm.checkpoints import (
    MIN_COVERAGE,
    ConversionReport,
    convert_state_dict,
    get_state_dict,
    read_checkpoint,
)
from slide_mm.engine.outputs import write_atomically
from slide_mm.engine.reporting import ConfigError
from slide_mm.models import SlidePVT, SlidePVTv2, SlideSwin

_FAMILIES = {"slide-swin": SlideSwin, "slide-pvt": SlidePVT, "slide-pvtv2": SlidePVTv2}
ARCHS = tuple(f"{name}/{arch}" for name, family in _FAMILIES.items() for arch in family.arch_zoo)
FORMATS = ("pth", "safetensors")


def convert_checkpoint(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    arch: str,
    source: str | None = None,
    slide_stages: tuple[int, ...] | None = None,
    model_options: Mapping[str, Any] | None = None,
    file_format: str | None = None,
    min_coverage: float = MIN_COVERAGE,
    dry_run: bool = False,
) -> ConversionReport:
    """Convert a checkpoint into one of a slide_mm backbone, and print what became of each tensor.

    The backbone's weights are written, and those of a linear classifier on its last features; what
    the checkpoint lacks is not.

    Args:
        src: Checkpoint of one of :data:`slide_mm.checkpoints.SOURCES`.
        dst: File to write; its folders are made.
        arch: One of ``ARCHS``.
        source: Layout of ``src``. Default: it is recognised.
        slide_stages: Stages of the backbone that slide. Default: the backbone's default.
        model_options: Further arguments of the backbone.
        file_format: One of ``FORMATS``. Default: ``'safetensors'`` if ``dst`` ends so, else
            ``'pth'``.
        min_coverage: Share of the backbone's parameters that ``src`` must have, from 0 to 1.
        dry_run: Write nothing.

    Returns:
        What became of each tensor.

    Raises:
        ConfigError: If an argument is wrong, or ``dst`` cannot be written.
        CheckpointError: If ``src`` is missing, damaged, holds code, or doesn't fit.
    """
    if not 0 <= min_coverage <= 1:
        raise ConfigError(f"--min-coverage is {min_coverage}: give a fraction from 0 to 1")
    options = dict(model_options or {})
    if slide_stages is not None:
        options["slide_stages"] = slide_stages
    backbone = _build_on_meta(arch, options)
    conversion = convert_state_dict(
        get_state_dict(read_checkpoint(src)),
        backbone,
        f"checkpoint {src}",
        source=source,
        keep_classifier=True,
    )
    print(conversion.report)
    conversion.report.require(min_coverage)
    if not dry_run:
        made_of = {"arch": arch, "converted_from": conversion.report.source}
        _write(conversion.weights, Path(dst), file_format, made_of)
        print(f"written to {dst}")
    return conversion.report


def _build_on_meta(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a backbone without memory for its weights."""
    if arch not in ARCHS:
        raise ConfigError(f"--arch is {arch}: choose one of {', '.join(ARCHS)}")
    family, name = arch.split("/")
    try:
        with torch.device("meta"):
            return _FAMILIES[family](name, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot build {arch}: {error}") from error


def _write(
    weights: Mapping[str, Tensor], path: Path, file_format: str | None, meta: Mapping[str, str]
) -> None:
    if file_format is None:
        file_format = "safetensors" if path.suffix == ".safetensors" else "pth"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as file:
            if file_format == "safetensors":
                safetensors.torch.save_file(dict(weights), file, {"format": "pt", **meta})
            else:
                torch.save({"state_dict": dict(weights), "meta": dict(meta)}, file)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
