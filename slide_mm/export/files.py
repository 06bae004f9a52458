"""Exported models as files, checked against PyTorch before they get their names."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.config import load_config, packed_weights, require_keys
from slide_mm.engine.outputs import check_output
from slide_mm.engine.reporting import ConfigError
from slide_mm.export.program import MIN_SIDE, ExportedPart, export_program, load_part
from slide_mm.export.runtimes import (
    MAX_DIFFERENCE,
    ONNX,
    PACKAGE,
    RUNTIMES,
    Size,
    check_runtimes,
    largest_difference,
    open_file,
    require_packages,
    sizes_of,
)

OPSET = 20
_PACKAGES = {ONNX: ("onnx", "onnxscript", "onnxruntime")}


def export_model(
    config: str,
    checkpoint: str | None,
    out: str | Path,
    size: Sequence[int] | None = None,
    static: bool = False,
    part: str = "whole",
) -> dict[str, dict[Size, float]]:
    """Write a config's model as a file that needs none of our code, and check it.

    Args:
        config: Config file of a detector or segmentor, or a folder that
            ``tools/model_converters/pack.py`` has written.
        checkpoint: Weights of its model; None for those in the folder, or beside a file for
            random ones, always the same.
        out: File to write: an ``.onnx`` file of standard operators, for onnxruntime and OpenVINO,
            or a ``.pt2`` package of AOTInductor, compiled for this CPU.
        size: Height and width of images to check with, and that a static file is for.
        static: Fix batch 1 and the size; otherwise all three may change.
        part: One of ``PARTS``: a segmentor end to end or a detector's backbone and neck, or the
            backbone of either.

    Returns:
        For each runtime the largest difference from PyTorch's deployed form, relative to the
        largest value, by batch, height and width.

    Raises:
        ConfigError: If the config or an option is wrong, a package is missing or the model can't
            be exported, or if the file differs by more than ``MAX_DIFFERENCE``.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    out = Path(out)
    _check_options(size, static)
    cfg = load_config(config)
    require_keys(cfg, "exporting", "model")
    checkpoint = checkpoint or packed_weights(config)
    check_output(out, tuple(RUNTIMES))
    require_packages(*_PACKAGES.get(out.suffix, ()))
    model = load_part(cfg, checkpoint, part)
    fixed = (1, *size) if static else None
    program = export_program(load_part(cfg, checkpoint, part), fixed)
    preprocessor = cfg.model.get("data_preprocessor") or {}
    keys = ("mean", "std", "bgr_to_rgb", "pad_size_divisor")
    notes = {key: json.dumps(preprocessor[key]) for key in keys if key in preprocessor}
    notes |= {"part": part, "checkpoint": checkpoint or "", "size": json.dumps(fixed)}
    with write_atomically(out) as file:
        _WRITERS[out.suffix](program, model, file, notes)
        return _check(model, file, [(1, *size)] if size else [])


def _check_options(size: Sequence[int] | None, static: bool) -> None:
    if torch.__version__ < (2, 7):
        raise ConfigError(f"exports need PyTorch 2.7 or later, here is {torch.__version__}")
    if size is None and static:
        raise ConfigError("--static needs the size of the images: add --size HEIGHT WIDTH")
    if size is not None and min(size) < MIN_SIDE:
        height, width = size
        raise ConfigError(f"--size is {height} {width}: give {MIN_SIDE} pixels a side at least")


def _write_onnx(
    program: ExportedProgram, model: ExportedPart, file: Path, notes: Mapping[str, str]
) -> None:
    """Write operators of ONNX's own domain; refuse others."""
    import onnx
    from onnxscript import optimizer

    count = len(program.graph_signature.user_outputs)
    names = [model.output] if count == 1 else [f"{model.output}_{i}" for i in range(count)]
    with warnings.catch_warnings(), _silence(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=names,
                verbose=False,
                optimize=False,  # It takes half a minute, and runtimes do the same.
            )
        except torch.onnx.OnnxExporterError as error:
            raise ConfigError(f"the model cannot be written as ONNX: {_reason(error)}") from error
    optimizer.inline(written.model)
    optimizer.fold_constants(written.model)
    optimizer.remove_unused_nodes(written.model)
    written = written.model_proto
    foreign = {node.domain for node in written.graph.node} - {""}
    if foreign:
        raise ConfigError(f"the model needs operators that ONNX lacks, of {', '.join(foreign)}")
    onnx.helper.set_model_props(written, notes)
    onnx.save(written, file)


def _write_package(
    program: ExportedProgram, model: ExportedPart, file: Path, notes: Mapping[str, str]
) -> None:
    """Compile for this CPU."""
    try:
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(file),
            inductor_configs={"aot_inductor.metadata": dict(notes)},
        )
    except Exception as error:  # Compilers fail in many ways.
        raise ConfigError(f"the model cannot be compiled: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of what was first wrong: the exporters' own errors are pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


_WRITERS = {ONNX: _write_onnx, PACKAGE: _write_package}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep exporters from logging and printing what users can't act on."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _check(model: ExportedPart, file: Path, more: Sequence[Size]) -> dict[str, dict[Size, float]]:
    differences: dict[str, dict[Size, float]] = {}
    for name in check_runtimes(file):
        opened = open_file(file, name)
        differences[name] = {}
        for size in sizes_of(opened, more):
            difference = differences[name][size] = largest_difference(model, opened, size)
            if not difference <= MAX_DIFFERENCE:
                raise ConfigError(
                    f"the exported model differs from PyTorch's by {difference:.1e} at {size} in "
                    f"{name}, more than {MAX_DIFFERENCE:.0e}: nothing has been written"
                )
    return differences
