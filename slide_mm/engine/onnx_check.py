"""ONNX files against PyTorch, in numbers and in time."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from slide_mm.engine.config import load_config, require_keys
from slide_mm.engine.markdown import format_table
from slide_mm.engine.onnx_export import CHECKED_SIZES, MAX_DIFFERENCE, ExportedPart, load_part
from slide_mm.engine.outputs import PICTURES, check_output, write_atomically
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.runtimes import RUNTIMES, Runner, is_installed, largest_difference
from slide_mm.engine.timing import describe_environment, forward_of, measure_times

_Size = tuple[int, int, int]


def check_onnx(
    files: Sequence[str],
    config: str,
    checkpoint: str | None = None,
    size: Sequence[int] = (800, 1280),
    rounds: int = 10,
    threads: int | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Compare exported files with PyTorch's deployed form.

    Args:
        files: What :func:`slide_mm.engine.onnx_export.export_onnx` has written, all of one part of
            one model.
        config: Config file they were made from.
        checkpoint: Weights they were made from. Default: those that the first file names.
        size: Height and width for the latencies, batch 1, unless a file is for one size only.
        rounds: See :func:`slide_mm.analysis.benchmark.measure_times`.
        threads: Threads of PyTorch and of each runtime. Default: PyTorch's.
        out: Picture of the latencies to write.

    Returns:
        The ``environment``; ``missing`` runtimes; ``size``; ``pytorch``, its
        :class:`~slide_mm.analysis.benchmark.Spread` of milliseconds; and ``results``: a dict for
        each file and runtime with ``file``, ``runtime``, ``spread`` and ``differences``, the
        largest relative difference at each size.

    Raises:
        ConfigError: If a file, the config or an option is wrong, or no runtime is installed.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    cfg = load_config(config)
    require_keys(cfg, "checking", "model")
    _check_options(rounds, threads, size, out)
    if threads:
        torch.set_num_threads(threads)
    runtimes = [name for name in RUNTIMES if is_installed(name)]
    missing = [name for name in RUNTIMES if name not in runtimes]
    if not runtimes:
        raise ConfigError(f"no runtime is installed: pip install {' '.join(missing)}")
    notes, fixed = _read_notes(files)
    model = load_part(cfg, checkpoint or notes["checkpoint"] or None, notes["part"])
    runs = {(file, name): _open(file, name) for file in files for name in runtimes}
    sizes = [fixed] if fixed else CHECKED_SIZES
    differences = {key: _compare(model, key[0], run, sizes) for key, run in runs.items()}
    size = fixed or (1, *size)
    times = _measure(model, runs, size, rounds)
    pytorch = times.pop("pytorch")
    report = {
        "environment": describe_environment(torch.device("cpu")),
        "missing": missing,
        "size": size,
        "pytorch": pytorch,
        "results": [
            {
                "file": file,
                "runtime": name,
                "spread": spread,
                "differences": differences[file, name],
            }
            for (file, name), spread in times.items()
        ],
    }
    if out:
        with write_atomically(out) as picture:
            plot_latencies(report, picture)
    return report


def _check_options(rounds: int, threads: int | None, size: Sequence[int], out: str | None) -> None:
    for name, numbers in {"rounds": [rounds], "threads": [threads or 1], "size": size}.items():
        if min(numbers) < 1:
            given = " ".join(map(str, numbers))
            raise ConfigError(f"--{name} is {given}: give positive numbers")
    if out:
        check_output(out, PICTURES)


def _read_notes(files: Sequence[str]) -> tuple[dict[str, str], _Size | None]:
    """What the files say of themselves, and the one size that they are for, if they are."""
    notes, sizes = zip(*map(_read_note, files), strict=True)
    if len({note["part"] for note in notes}) > 1 or len(set(sizes)) > 1:
        raise ConfigError(
            f"{', '.join(files)} are of different parts or sizes: check them one by one"
        )
    return notes[0], sizes[0]


def _read_note(file: str) -> tuple[dict[str, str], _Size | None]:
    import onnx

    if not Path(file).is_file():
        raise ConfigError(f"{file} does not exist: check the path")
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # Parsing damaged bytes can raise anything.
        raise ConfigError(f"{file} cannot be read as ONNX: {error}") from error
    notes = {entry.key: entry.value for entry in model.metadata_props}
    if not {"part", "checkpoint"} <= notes.keys():
        raise ConfigError(f"{file} was not written by export_onnx.py: export it again")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    batch, _, height, width = (dim.dim_value for dim in dims)
    return notes, (batch, height, width) if batch and height and width else None


def _open(file: str, runtime: str) -> Runner:
    try:
        return RUNTIMES[runtime](file)
    except Exception as error:  # Runtimes have errors of many kinds.
        raise ConfigError(f"{runtime} cannot open {file}: {error}") from error


def _compare(
    model: ExportedPart, file: str, run: Runner, sizes: Sequence[_Size]
) -> dict[_Size, float]:
    try:
        return {size: largest_difference(model, run, size) for size in sizes}
    except ValueError as error:
        raise ConfigError(f"{file} is not of the model of this config: {error}") from error


def _measure(
    model: ExportedPart, runs: Mapping[Any, Runner], size: _Size, rounds: int
) -> dict[Any, Any]:
    batch, height, width = size
    image = torch.randn(batch, model.in_channels, height, width)
    contenders = {"pytorch": forward_of(partial(model, image))}
    contenders |= {key: partial(run, image.numpy()) for key, run in runs.items()}
    return measure_times(contenders, rounds, torch.device("cpu"), f"{height}x{width}")


def format_check(report: Mapping[str, Any]) -> str:
    """Show a report of :func:`check_onnx` as a table in Markdown."""
    pytorch, results = report["pytorch"], report["results"]
    sizes = list(results[0]["differences"])
    differences = [f"difference at {'x'.join(map(str, size))}" for size in sizes]
    lines = [["PyTorch", "deployed form", *("" for _ in sizes), *_latency(pytorch, pytorch)]]
    for result in results:
        cells = [f"{result['differences'][size]:.1e}" for size in sizes]
        latency = _latency(result["spread"], pytorch)
        lines.append([result["runtime"], result["file"], *cells, *latency])
    header = ["", "", *differences, f"ms at {'x'.join(map(str, report['size']))}", "ratio"]
    threads = report["environment"]["threads"]
    return (
        f"{format_table(header, lines)}\n\n{threads} threads; medians and quartiles; ratios to "
        "PyTorch; differences relative to the largest value"
    )


def find_mistakes(report: Mapping[str, Any]) -> list[str]:
    """One line for each file and runtime that differs too much from PyTorch."""
    return [
        f"{result['file']} differs from PyTorch by {difference:.1e} at {size} in "
        f"{result['runtime']}, more than {MAX_DIFFERENCE:.0e}: export it again"
        for result in report["results"]
        for size, difference in result["differences"].items()
        if not difference <= MAX_DIFFERENCE
    ]


def _latency(spread: Any, reference: Any) -> list[str]:
    ratio = spread.median / reference.median
    return [f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})", f"{ratio:.2f}"]


def plot_latencies(report: Mapping[str, Any], out: str | Path) -> None:
    """Draw latencies as ratios to PyTorch.

    Args:
        report: What :func:`check_onnx` returns.
        out: Picture to write.
    """
    reference, results = report["pytorch"].median, report["results"]
    files = {result["file"] for result in results}
    are_different = len({Path(file).stem for file in files}) == len(files)
    labels = [
        f"{result['runtime']}, {Path(result['file']).stem if are_different else result['file']}"
        for result in results
    ]
    ratios = [result["spread"].median / reference for result in results]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(results)), layout="constrained")
    axes = figure.subplots()
    axes.bar_label(axes.barh(labels, ratios, height=0.6), fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    batch, height, width = report["size"]
    axes.set_xlabel(
        "latency over that of PyTorch's deployed form\n"
        f"{height} x {width}, batch {batch}, {report['environment']['threads']} threads"
    )
    figure.savefig(out, dpi=110)
