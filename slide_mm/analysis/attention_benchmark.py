"""Slide Attention's backends against window attention and against what the machine could do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from slide_mm.analysis.attention_contenders import (
    KERNEL_SIZE,
    SLIDE,
    WINDOW,
    Shape,
    build_runs,
    has_backward,
    list_contenders,
    make_contender,
    make_inputs,
)
from slide_mm.analysis.benchmark import (
    Rates,
    backward_of,
    fit_exponent,
    measure_memory,
    measure_rates,
)
from slide_mm.engine.markdown import format_table
from slide_mm.engine.timing import describe_environment, forward_of, measure_times
from slide_mm.ops.backends import TABLE

# The first stages of Slide-Swin-T and the first of Slide-PVT at 800 x 1280.
SHAPES = {
    "A": Shape(1, 200, 320, 3, 32),
    "B": Shape(1, 100, 160, 6, 32),
    "C": Shape(1, 200, 320, 1, 64),
}
# Square images whose first stage of Slide-Swin-T is computed, in pixels a side.
SCALING_SIDES = (512, 1024, 1536, 2048)
DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
_TOLERANCE = 1e-4


def benchmark_attention(
    shapes: Mapping[str, Shape],
    names: Sequence[str],
    rounds: int,
    device: torch.device,
    scaling: bool = False,
) -> dict[str, Any]:
    """Measure contenders at every shape.

    Args:
        shapes: Shapes of query, key and value, by name.
        names: Contenders, of :func:`slide_mm.analysis.attention_contenders.list_contenders`.
        rounds: See :func:`slide_mm.analysis.benchmark.measure_times`.
        device: Where to measure.
        scaling: Whether also to measure how time and memory grow with the image.

    Returns:
        Plain numbers, ready for JSON: the ``environment``, the machine's ``rates``, ``shapes`` by
        name, and ``scaling`` if wanted.

    Raises:
        ArithmeticError: If two forms of Slide Attention differ, by more than float32 explains.
    """
    environment = describe_environment(device)
    rates = measure_rates(device)
    results = {
        name: {
            "shape": list(shape),
            "floor": _floors(shape, rates),
            "largest_difference": _check_agreement(shape, device),
            "contenders": _measure(name, shape, names, rounds, device),
        }
        for name, shape in shapes.items()
    }
    report = {"environment": environment, "rates": rates._asdict(), "shapes": results}
    if scaling:
        report["scaling"] = _measure_scaling(rounds, device)
    return report


def count_work(shape: Shape) -> dict[str, tuple[int, int]]:
    """Floating-point operations, and bytes of the tensors that must be read or written, at least.

    With N pixels and heads and d channels, forward takes 2 N d (K^2 + K^4) multiply-adds: for key
    and value the products with K^2 neighbours, and their mixing by the kernel. Backward computes
    one of the two again, and five more of each kind give the gradients. Bytes are those of query,
    key, value and output, and in training of their gradients and, twice, of the attention weights.
    """
    taps = KERNEL_SIZE**2
    pixels = shape.batch * shape.height * shape.width * shape.num_heads
    unit = 2 * pixels * shape.head_dim * (taps + taps**2)
    tensor = 4 * pixels * shape.head_dim
    return {"forward": (2 * unit, 4 * tensor), "both": (7 * unit, 11 * tensor + 8 * pixels * taps)}


def _floors(shape: Shape, rates: Rates) -> dict[str, float]:
    return {direction: rates.floor(*work) for direction, work in count_work(shape).items()}


def _check_agreement(shape: Shape, device: torch.device) -> float:
    """Largest difference between the forms of Slide Attention, relative to the largest output."""
    inputs = make_inputs(shape._replace(height=17, width=23), device)
    with torch.no_grad():
        outputs = [make_contender(x, inputs)() for x in list_contenders(device) if x in SLIDE]
    largest = max(((x - outputs[0]).abs().max() / outputs[0].abs().max()).item() for x in outputs)
    if largest > _TOLERANCE:
        raise ArithmeticError(f"forms of Slide Attention differ by {largest:.1e} at {shape}")
    return largest


def _measure(
    label: str, shape: Shape, names: Sequence[str], rounds: int, device: torch.device
) -> dict[str, Any]:
    inputs = make_inputs(shape, device)
    functions = {name: make_contender(name, inputs) for name in names}
    trained = [x for x in inputs if x.requires_grad]
    runs = {
        "forward": {name: forward_of(function) for name, function in functions.items()},
        "both": {
            name: backward_of(function, trained)
            for name, function in functions.items()
            if has_backward(name, device)
        },
    }
    times = {
        direction: measure_times(runs[direction], rounds, device, f"{label}, {title}")
        for direction, title in DIRECTIONS.items()
    }
    del inputs, functions, runs
    return {
        name: {
            "ms": {
                direction: times[direction][name]._asdict()
                for direction in DIRECTIONS
                if name in times[direction]
            },
            "mib": measure_memory(build_runs, name, shape, device, device=device)._asdict(),
        }
        for name in names
    }


def _measure_scaling(rounds: int, device: torch.device) -> dict[str, Any]:
    """Time and memory of the backends that models run, by the side of the image."""
    here = list_contenders(device)
    names = [name for name, backend in TABLE.items() if backend.backward and name in here]
    sides = {
        side: _measure(
            f"{side} x {side}", Shape(1, side // 4, side // 4, 3, 32), names, rounds, device
        )
        for side in SCALING_SIDES
    }
    pixels = [side**2 for side in sides]
    exponents = {
        name: {
            **{
                f"{direction}_ms": fit_exponent(
                    pixels, [side[name]["ms"][direction]["median"] for side in sides.values()]
                )
                for direction in DIRECTIONS
            },
            **{
                f"{direction}_mib": fit_exponent(
                    pixels, [side[name]["mib"][direction] for side in sides.values()]
                )
                for direction in DIRECTIONS
            },
        }
        for name in names
    }
    return {"sides": sides, "exponents": exponents}


def format_attention(report: Mapping[str, Any]) -> str:
    """Show a report of :func:`benchmark_attention` as tables in Markdown."""
    parts = []
    for name, result in report["shapes"].items():
        floor = result["floor"]
        parts.append(
            f"{_title(name, result)}: floor {floor['forward']:.1f} ms forward, "
            f"{floor['both']:.1f} ms with backward\n\n{_format_shape(result)}"
        )
    if "scaling" in report:
        header = ["exponent of the number of pixels", *_SCALING_COLUMNS.values()]
        lines = [
            [name, *(f"{exponents[key]:.2f}" for key in _SCALING_COLUMNS)]
            for name, exponents in report["scaling"]["exponents"].items()
        ]
        parts.append(format_table(header, lines))
    return "\n\n".join(parts)


_SCALING_COLUMNS = {
    "forward_ms": "time, forward",
    "both_ms": "time, forward + backward",
    "forward_mib": "memory, forward",
    "both_mib": "memory, forward + backward",
}


def _title(name: str, result: Mapping[str, Any]) -> str:
    shape = str(Shape(*result["shape"]))
    return shape if name == shape else f"{name} ({shape})"


def _format_shape(result: Mapping[str, Any]) -> str:
    contenders = result["contenders"]
    header = [""]
    for title in DIRECTIONS.values():
        header += [f"{title}, ms (quartiles)", "/ window", "published /", "floor, %", "MiB"]
    return format_table(
        header,
        [
            [name, *(cell for x in DIRECTIONS for cell in _cells(result, name, x))]
            for name in contenders
        ],
    )


def _cells(result: Mapping[str, Any], name: str, direction: str) -> list[str]:
    contenders = result["contenders"]
    if direction not in contenders[name]["ms"]:
        return ["-"] * 5
    time = contenders[name]["ms"][direction]
    medians = {x: contenders[x]["ms"].get(direction, {}).get("median") for x in contenders}
    window, published = medians.get(WINDOW), medians.get("published")
    return [
        f"{time['median']:.1f} ({time['low']:.1f} to {time['high']:.1f}, n = {time['rounds']})",
        f"{time['median'] / window:.2f}" if window else "-",
        f"{published / time['median']:.1f}" if published else "-",
        f"{100 * result['floor'][direction] / time['median']:.0f}" if name in SLIDE else "-",
        f"{contenders[name]['mib'][direction]:.0f}",
    ]


def plot_attention(report: Mapping[str, Any], out: str | Path) -> None:
    """Draw times and memory of a report of :func:`benchmark_attention`.

    Args:
        report: The report.
        out: Picture to write.
    """
    shapes = report["shapes"]
    rows = 3 if "scaling" in report else 2
    figure = Figure(figsize=(5 * max(2, len(shapes)), 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, max(2, len(shapes)), squeeze=False)
    for column, (name, result) in enumerate(shapes.items()):
        _draw_bars(axes[0, column], result["contenders"], "ms", _title(name, result))
        _draw_bars(axes[1, column], result["contenders"], "mib", "")
        for direction, style in zip(DIRECTIONS, (":", "--"), strict=True):
            axes[0, column].axvline(result["floor"][direction], color="black", linestyle=style)
        axes[0, column].set_xlabel("ms, median (black lines: floors)")
        axes[1, column].set_xlabel("MiB beyond the inputs, at the peak")
    for unused in axes[:2, len(shapes) :].flat:
        unused.set_axis_off()
    axes[0, 0].legend(loc="upper right", fontsize="small")
    if "scaling" in report:
        _draw_scaling(axes[2], report["scaling"])
    figure.savefig(out, dpi=110)


def _draw_bars(axes: Any, contenders: Mapping[str, Any], quantity: str, title: str) -> None:
    names = list(contenders)
    for number, (direction, label) in enumerate(DIRECTIONS.items()):
        values = [contenders[name][quantity].get(direction) or 0 for name in names]
        values = [x["median"] if isinstance(x, dict) else x for x in values]
        places = [index + 0.38 * (number - 0.5) for index in range(len(names))]
        axes.barh(places, values, height=0.36, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xscale="log", title=title)
    axes.grid(axis="x", alpha=0.3)


def _draw_scaling(row: Any, scaling: Mapping[str, Any]) -> None:
    pixels = [int(side) ** 2 / 1e6 for side in scaling["sides"]]
    for axes, quantity, label in zip(row, ("ms", "mib"), ("ms", "MiB"), strict=False):
        for name in scaling["exponents"]:
            for direction, title in DIRECTIONS.items():
                values = [side[name][quantity][direction] for side in scaling["sides"].values()]
                values = [x["median"] if isinstance(x, dict) else x for x in values]
                exponent = scaling["exponents"][name][f"{direction}_{quantity}"]
                axes.plot(pixels, values, "o-", label=f"{name}, {title}: exponent {exponent:.2f}")
        axes.set(xscale="log", yscale="log", xlabel="megapixels of the image", ylabel=label)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.5)  # Room for the legend.
        axes.legend(fontsize="small", loc="upper left")
        axes.grid(alpha=0.3)
    for unused in row[2:]:
        unused.set_axis_off()
