"""Exported files against PyTorch, in numbers and in time."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.config import load_config, packed_weights, require_keys
from slide_mm.engine.markdown import format_table
from slide_mm.engine.outputs import PICTURES, check_output
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.timing import Spread, describe_environment, forward_of, measure_times
from slide_mm.export.program import load_part
from slide_mm.export.runtimes import (
    MAX_DIFFERENCE,
    check_runtimes,
    largest_difference,
    open_file,
    sizes_of,
)


def check_exports(
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
        files: What :func:`slide_mm.export.export_model` has written, all of one part of one model.
        config: Config file they were made from.
        checkpoint: Weights they were made from. Default: those of ``config``, if it is a packed
            folder, or those that the first file names.
        size: Height and width for the latencies, batch 1, unless the files are for one size only.
        rounds: See :func:`slide_mm.engine.timing.measure_times`.
        threads: Threads of PyTorch and of each runtime. Default: PyTorch's.
        out: Picture of the latencies to write.

    Returns:
        The ``environment``; ``size``; ``pytorch``, its :class:`~slide_mm.engine.timing.Spread` of
        milliseconds; and ``results``: a dict for each file and runtime with ``file``, ``runtime``,
        ``spread`` and ``differences``, the largest relative difference at each size.

    Raises:
        ConfigError: If a file, the config or an option is wrong, or no runtime is installed.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    cfg = load_config(config)
    require_keys(cfg, "checking", "model")
    _check_options(rounds, threads, size, out)
    if threads:
        torch.set_num_threads(threads)
    opened = {
        (file, name): open_file(file, name) for file in files for name in check_runtimes(file)
    }
    notes = [(file.notes["part"], file.notes["size"]) for file in opened.values()]
    if len(set(notes)) > 1:
        raise ConfigError(
            f"{', '.join(files)} are of different parts or sizes: check them one by one"
        )
    first = next(iter(opened.values()))
    sizes = sizes_of(first)
    size = sizes[0] if len(sizes) == 1 else (1, *size)
    checkpoint = checkpoint or packed_weights(config) or first.notes["checkpoint"] or None
    model = load_part(cfg, checkpoint, first.notes["part"])
    differences = {
        key: {size: largest_difference(model, file, size) for size in sizes}
        for key, file in opened.items()
    }
    image = model.example(size)
    contenders = {"pytorch": forward_of(partial(model, image))}
    contenders |= {key: partial(file.run, image.numpy()) for key, file in opened.items()}
    times = measure_times(contenders, rounds, torch.device("cpu"), "x".join(map(str, size)))
    report = {
        "environment": describe_environment(torch.device("cpu")),
        "size": size,
        "pytorch": times.pop("pytorch"),
        "results": [
            {"file": key[0], "runtime": key[1], "spread": spread, "differences": differences[key]}
            for key, spread in times.items()
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


def format_check(report: Mapping[str, Any]) -> str:
    """Show a report of :func:`check_exports` as a table in Markdown."""
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


def _latency(spread: Spread, reference: Spread) -> list[str]:
    ratio = spread.median / reference.median
    return [f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})", f"{ratio:.2f}"]


def plot_latencies(report: Mapping[str, Any], out: str | Path) -> None:
    """Draw the latencies of a report of :func:`check_exports` as ratios to PyTorch."""
    results = report["results"]
    labels = [f"{result['runtime']}, {result['file']}" for result in results]
    ratios = [result["spread"].median / report["pytorch"].median for result in results]
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
