"""Slide Attention's backends against window attention and against what the machine could do."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from slide_mm.analysis.attention_contenders import (
    FLEX,
    KERNEL_SIZE,
    SLIDE,
    WINDOW,
    Inputs,
    Shape,
    build_runs,
    has_backward,
    list_contenders,
    make_contender,
    make_inputs,
)
from slide_mm.analysis.benchmark import (
    MODES,
    Rates,
    backward_of,
    fit_exponent,
    list_modes,
    measure_calls,
    measure_memory,
    measure_rates,
    record_graphs,
    try_run,
)
from slide_mm.engine.markdown import format_table
from slide_mm.engine.timing import describe_environment, forward_of
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
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}
# On a GPU contenders go through inputs of so many bytes by turns: more than its cache holds.
_CACHE = 128 << 20


def benchmark_attention(
    shapes: Mapping[str, Shape],
    names: Sequence[str],
    rounds: int,
    device: torch.device,
    scaling: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Measure contenders at every shape; on CUDA, as they are launched and as a CUDA graph.

    Args:
        shapes: Shapes of query, key and value, by name.
        names: Contenders, of :func:`slide_mm.analysis.attention_contenders.list_contenders`.
        rounds: See :func:`slide_mm.analysis.benchmark.measure_times`.
        device: Where to measure.
        scaling: Whether also to measure how time and memory grow with the image.
        dtype: Type of all tensors.

    Returns:
        Plain numbers, ready for JSON: the ``environment``, the machine's ``rates``, ``shapes`` by
        name, and ``scaling`` if wanted.

    Raises:
        ArithmeticError: If two forms of Slide Attention differ, by more than the type explains.
    """
    environment = describe_environment(device) | {"dtype": str(dtype).removeprefix("torch.")}
    rates = measure_rates(device, dtype=dtype)
    results = {
        name: {
            "shape": list(shape),
            "floor": _floors(shape, rates, dtype),
            "largest_difference": _check_agreement(shape, device, dtype),
            "contenders": _measure(name, shape, names, rounds, device, dtype),
        }
        for name, shape in shapes.items()
    }
    report = {"environment": environment, "rates": rates._asdict(), "shapes": results}
    if scaling:
        report["scaling"] = _measure_scaling(rounds, device, dtype)
    return report


def count_work(shape: Shape, dtype: torch.dtype = torch.float32) -> dict[str, tuple[int, int]]:
    """Floating-point operations, and bytes of the tensors that must be read or written, at least.

    With N pixels and heads and d channels, forward takes 2 N d (K^2 + K^4) multiply-adds: for key
    and value the products with K^2 neighbours, and their mixing by the kernel. Backward computes
    one of the two again, and five more of each kind give the gradients. Bytes are those of query,
    key, value and output, and in training of their gradients and, twice, of the attention weights.
    """
    taps = KERNEL_SIZE**2
    pixels = shape.batch * shape.height * shape.width * shape.num_heads
    unit = 2 * pixels * shape.head_dim * (taps + taps**2)
    size = torch.empty((), dtype=dtype).element_size()
    tensor, attention = size * pixels * shape.head_dim, size * pixels * taps
    return {"forward": (2 * unit, 4 * tensor), "both": (7 * unit, 11 * tensor + 2 * attention)}


def _floors(shape: Shape, rates: Rates, dtype: torch.dtype) -> dict[str, float]:
    return {direction: rates.floor(*work) for direction, work in count_work(shape, dtype).items()}


def _check_agreement(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference between the forms of Slide Attention, relative to the largest output."""
    inputs = make_inputs(shape._replace(batch=1, height=17, width=23), device, dtype)
    names = [name for name in list_contenders(device, dtype) if name in SLIDE]
    # cuDNN takes tf32 for float32 otherwise.
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        outputs = [make_contender(name, inputs)() for name in names]
    largest = max(((x - outputs[0]).abs().max() / outputs[0].abs().max()).item() for x in outputs)
    if largest > _TOLERANCES[dtype]:
        raise ArithmeticError(f"forms of Slide Attention differ by {largest:.1e} at {shape}")
    return largest


def _measure(
    label: str,
    shape: Shape,
    names: Sequence[str],
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    inputs = make_inputs(shape, device, dtype)
    num_sets = math.ceil(_CACHE / inputs.qkv.nbytes) if device.type != "cpu" else 1
    sets = [inputs, *(make_inputs(shape, device, dtype) for _ in range(num_sets - 1))]
    runs = {direction: _prepare(direction, names, sets, device) for direction in DIRECTIONS}
    times = {}
    for mode in list_modes(device):
        for direction, title in DIRECTIONS.items():
            given = runs[direction] if mode == "ms" else record_graphs(runs[direction])
            what = f"{label}, {title}{MODES[mode]}"
            times[mode, direction] = measure_calls(given, rounds, device, what, num_sets)
            del given
    del inputs, sets, runs
    contenders: dict[str, Any] = {name: {} for name in names}
    for (mode, direction), spreads in times.items():
        for name, spread in spreads.items():
            contenders[name].setdefault(mode, {})[direction] = spread._asdict()
    for name, contender in contenders.items():
        fits = len(contender.get("ms", {})) == 1 + has_backward(name, device)
        fits &= name != FLEX or device.type == "cpu"  # A GPU's is compiled anew for a minute.
        contender["mib"] = (
            measure_memory(build_runs, name, shape, device, dtype, device=device)._asdict()
            if fits
            else {}
        )
    return contenders


def _prepare(
    direction: str, names: Sequence[str], sets: Sequence[Inputs], device: torch.device
) -> dict[str, Callable[[], None]]:
    """What runs contenders on all inputs, of those that can; the others are told."""
    runs = {}
    for name in names:
        if direction == "both" and not has_backward(name, device):
            continue
        run = partial(_run_on_all, name, direction, sets, {})
        if try_run(run, f"{name}, {DIRECTIONS[direction]}"):
            runs[name] = run
    return runs


def _run_on_all(
    name: str, direction: str, sets: Sequence[Inputs], made: dict[int, Callable[[], None]]
) -> None:
    """Run a contender on inputs, one after the other; what runs it is made the first time."""
    for index, inputs in enumerate(sets):
        # Flex attention would be compiled for each of them.
        index, inputs = (0, sets[0]) if name == FLEX else (index, inputs)
        if index not in made:
            function = make_contender(name, inputs)
            trained = [x for x in inputs if x.requires_grad]
            both = direction == "both"
            made[index] = backward_of(function, trained) if both else forward_of(function)
        made[index]()


def _measure_scaling(rounds: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Time and memory of the backends that models run, by the side of the image."""
    here = list_contenders(device, dtype)
    names = [name for name, backend in TABLE.items() if backend.backward and name in here]
    sides = {
        side: _measure(
            f"{side} x {side}", Shape(1, side // 4, side // 4, 3, 32), names, rounds, device, dtype
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
        floor = {direction: _number(x) for direction, x in result["floor"].items()}
        title = f"{_title(name, result)}: floor {floor['forward']} ms forward"
        parts += [
            f"{title}, {floor['both']} ms with backward{MODES[mode]}\n\n{_format(result, mode)}"
            for mode in _modes(result)
        ]
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


def _modes(result: Mapping[str, Any]) -> list[str]:
    contenders = result["contenders"].values()
    return [mode for mode in MODES if mode == "ms" or any(mode in x for x in contenders)]


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds >= 1 else f"{milliseconds:.4f}"


def _format(result: Mapping[str, Any], mode: str) -> str:
    header = [""]
    for title in DIRECTIONS.values():
        header += [f"{title}, ms (quartiles)", "/ window", "published /", "floor, %", "MiB"]
    return format_table(
        header,
        [
            [name, *(cell for x in DIRECTIONS for cell in _cells(result, name, mode, x))]
            for name in result["contenders"]
        ],
    )


def _cells(result: Mapping[str, Any], name: str, mode: str, direction: str) -> list[str]:
    contenders = result["contenders"]
    medians = {x: y.get(mode, {}).get(direction, {}).get("median") for x, y in contenders.items()}
    if medians[name] is None:
        return ["-"] * 5
    time, median = contenders[name][mode][direction], medians[name]
    window, published = medians.get(WINDOW), medians.get("published")
    quartiles = f"{_number(time['low'])} to {_number(time['high'])}, n = {time['rounds']}"
    mib = contenders[name]["mib"].get(direction)
    return [
        f"{_number(median)} ({quartiles})",
        f"{median / window:.2f}" if window else "-",
        f"{published / median:.1f}" if published else "-",
        f"{100 * result['floor'][direction] / median:.0f}" if name in SLIDE else "-",
        "-" if mib is None else f"{mib:.0f}",
    ]


def plot_attention(report: Mapping[str, Any], out: str | Path) -> None:
    """Draw times and memory of a report of :func:`benchmark_attention`.

    Args:
        report: The report.
        out: Picture to write.
    """
    shapes = report["shapes"]
    rows = [*(mode for mode in MODES if any(mode in _modes(x) for x in shapes.values())), "mib"]
    num_rows = len(rows) + ("scaling" in report)
    figure = Figure(figsize=(5 * max(2, len(shapes)), 3.6 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, max(2, len(shapes)), squeeze=False)
    for column, (name, result) in enumerate(shapes.items()):
        for row, quantity in zip(axes[:, column], rows, strict=False):
            _draw_bars(row, result["contenders"], quantity, _title(name, result))
            if quantity == "mib":
                row.set_xlabel("MiB beyond the inputs, at the peak")
                continue
            for direction, style in zip(DIRECTIONS, (":", "--"), strict=True):
                row.axvline(result["floor"][direction], color="black", linestyle=style)
            row.set_xlabel(f"ms, median{MODES[quantity]} (black lines: floors)")
    for unused in axes[: len(rows), len(shapes) :].flat:
        unused.set_axis_off()
    axes[0, 0].legend(loc="upper right", fontsize="small")
    if "scaling" in report:
        _draw_scaling(axes[-1], report["scaling"])
    figure.savefig(out, dpi=110)


def _draw_bars(axes: Any, contenders: Mapping[str, Any], quantity: str, title: str) -> None:
    names = list(contenders)
    for number, (direction, label) in enumerate(DIRECTIONS.items()):
        values = [contenders[name].get(quantity, {}).get(direction) or 0 for name in names]
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
