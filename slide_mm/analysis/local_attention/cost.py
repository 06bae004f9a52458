"""What backbones and their stages cost, by the size of the image."""

import itertools
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import nn

from slide_mm.analysis.benchmark import fit_exponent
from slide_mm.analysis.local_attention.measuring import (
    BACKBONE,
    ROUNDS,
    SLOW_ROUNDS,
    SLOWEST_ROUNDS,
    count_parts,
    measure_forward,
    run_if_it_fits,
)
from slide_mm.analysis.local_attention.section import Picture, Section, make_grid

QUANTITIES = {"ms": "time, ms", "mib": "peak memory, MiB", "flops": "operations, G multiply-adds"}
# Ratios nearer to 1 than this are taken for equal: stages that are the same have differed so much.
_NOISE = {"ms": 0.1, "mib": 0.2, "flops": 0.0}
_TEXT = """\
One forward pass of a batch of one square image, without gradients, in float32, in a fresh \
process for each model and size. The first passes give the peak of memory: for a stage, what it \
takes beyond its input. The passes after them are timed (median of {rounds}, of {slow} above a \
second, {slowest} above ten), stages inside the same passes as the backbone, and attention layers \
in passes of their own, as a block may work on its map in bands unless its layers are watched. \
Operations are counted as for the paper's tables. An exponent e says that cost grows as pixels \
to the power of e, fitted by least squares of logarithms over all sizes that ran; 1 is linear, 2 \
is quadratic. Dashed lines are the attention layers of a stage alone."""


def check_cost(
    models: Mapping[str, nn.Module], sides: Sequence[int], device: torch.device
) -> Section:
    """Measure what backbones in evaluation mode cost at several sizes.

    Args:
        models: Two of them by name; the first is compared with the second.
        sides: Sides of square images, in pixels, at least two.
        device: Where to measure.
    """
    numbers = {"sides": list(sides), "models": {}}
    for name, model in models.items():
        pickled = pickle.dumps(model)
        points = []
        for side in sides:
            print(f"cost: {name}, {side} x {side}", file=sys.stderr, flush=True)
            points.append(run_if_it_fits(measure_forward, pickled, side, device))
        numbers["models"][name] = _tabulate(points, [count_parts(model, x) for x in sides])
    # Where a linear and a quadratic part add up, the exponent grows with the image.
    for key, last in (("exponents", len(sides)), ("exponents_of_largest", 2)):
        numbers[key] = {x: _fit(sides, costs, last) for x, costs in numbers["models"].items()}
    numbers["ratios"] = _compare(numbers)
    numbers["crossings"] = {
        quantity: {part: find_crossings(sides, x, _NOISE[quantity]) for part, x in ratios.items()}
        for quantity, ratios in numbers["ratios"].items()
    }
    return Section(
        name="cost",
        title="What it costs",
        text=_TEXT.format(rounds=ROUNDS, slow=SLOW_ROUNDS, slowest=SLOWEST_ROUNDS),
        numbers=numbers,
        findings=_findings(numbers),
        header=_header(models),
        lines=_lines(numbers),
        pictures=[
            Picture(
                f"cost_{key}", f"{title}, by pixels, with exponents", _plot(numbers, key, title)
            )
            for key, title in QUANTITIES.items()
        ],
    )


def _tabulate(
    points: Sequence[dict[str, dict[str, Any]] | None], flops: Sequence[Mapping[str, int]]
) -> dict[str, dict[str, list]]:
    """Costs by quantity and part, one a size; None where memory ran out."""
    parts = list(flops[0])
    return {
        "ms": {x: [p and p[x]["ms"]["median"] for p in points] for x in parts},
        "ms_spread": {x: [p and p[x]["ms"] for p in points] for x in parts},
        "mib": {x: [p and p[x]["mib"] for p in points] for x in parts},
        "flops": {x: [counts[x] for counts in flops] for x in parts},
    }


def _fit(
    sides: Sequence[int], costs: Mapping[str, Mapping[str, list]], last: int
) -> dict[str, dict[str, float | None]]:
    """Exponents by quantity and part, over the last sizes that ran; None for fewer than two."""

    def fit(values: Sequence[float | None]) -> float | None:
        measured = [(side**2, x) for side, x in zip(sides, values, strict=True) if x]
        if len(measured) < 2:
            return None
        return fit_exponent(*zip(*measured[-last:], strict=True))

    return {
        quantity: {part: fit(values) for part, values in costs[quantity].items()}
        for quantity in QUANTITIES
    }


def _compare(numbers: Mapping[str, Any]) -> dict[str, dict[str, list[float | None]]]:
    """Cost of the first model over the second's; None where one didn't run."""
    first, second = numbers["models"].values()
    return {
        quantity: {
            part: [x / y if x and y else None for x, y in zip(values, others[part], strict=True)]
            for part, values in first[quantity].items()
            if part in (others := second[quantity])
        }
        for quantity in QUANTITIES
    }


def find_crossings(
    sides: Sequence[int], ratios: Sequence[float | None], noise: float
) -> list[float]:
    """Find the sizes at which a ratio goes through 1, by interpolation of logarithms.

    Ratios within ``noise`` of 1 are passed over, and those that are None, of unknown costs.
    """
    known = [
        (math.log(side), math.log(ratio))
        for side, ratio in zip(sides, ratios, strict=True)
        if ratio is not None and abs(ratio - 1) > noise
    ]
    return [
        math.exp(side + (next_side - side) * start / (start - stop))
        for (side, start), (next_side, stop) in itertools.pairwise(known)
        if (start < 0) != (stop < 0)
    ]


def _where_cheaper(numbers: Mapping[str, Any], quantity: str, part: str) -> str:
    ratios = numbers["ratios"][quantity].get(part, ())
    noise = _NOISE[quantity]
    pairs = zip(numbers["sides"], ratios, strict=False)
    sizes = [(side, x) for side, x in pairs if x is not None and abs(x - 1) > noise]
    if not sizes:
        return f"nowhere, within {100 * noise:.0f} %"
    crossings = numbers["crossings"][quantity][part]
    if crossings:  # With every crossing the two change places.
        sides = [f"{side:.0f} px" for side in crossings]
        return ("below " if sizes[0][1] < 1 else "above ") + ", then not, ".join(sides)
    if sizes[0][1] > 1:
        return "at no size"
    if len(sizes) == len(ratios):
        return "at every size"
    return f"at {', '.join(str(side) for side, _ in sizes)} px"


def _header(models: Mapping[str, Any]) -> list[str]:
    header = [""]
    for quantity in ("time", "memory", "operations"):
        header += [f"exponent of {quantity}: {name}" for name in models]
    first, second = models
    header += [f"between the two largest, time: {name}" for name in models]
    header += [f"{quantity} of {first} / {second}, largest" for quantity in ("time", "memory")]
    return [*header, f"{first} is faster"]


def _lines(numbers: Mapping[str, Any]) -> list[list[str]]:
    models = numbers["models"]

    def cells(kind: str, quantity: str, part: str) -> list[str]:
        exponents = (numbers[kind][name][quantity].get(part) for name in models)
        return ["-" if x is None else f"{x:.2f}" for x in exponents]

    return [
        [
            part,
            *(cell for quantity in QUANTITIES for cell in cells("exponents", quantity, part)),
            *cells("exponents_of_largest", "ms", part),
            *(_ratio_at_largest(numbers, quantity, part) for quantity in ("ms", "mib")),
            _where_cheaper(numbers, "ms", part),
        ]
        for part in _all_parts(numbers)
    ]


def _ratio_at_largest(numbers: Mapping[str, Any], quantity: str, part: str) -> str:
    ratios = [x for x in numbers["ratios"][quantity].get(part, ()) if x is not None]
    return f"{ratios[-1]:.2f}" if ratios else "-"


def _findings(numbers: Mapping[str, Any]) -> list[str]:
    first, second = numbers["models"]
    findings = []
    for part in numbers["ratios"]["ms"]:
        exponents = [numbers["exponents"][name]["ms"][part] for name in (first, second)]
        shown = ["unknown" if x is None else f"{x:.2f}" for x in exponents]
        findings.append(
            f"{part}: exponent of time {shown[0]} ({first}), {shown[1]} ({second}); {first} is "
            f"faster {_where_cheaper(numbers, 'ms', part)}, smaller in memory "
            f"{_where_cheaper(numbers, 'mib', part)}; at the largest size that both ran it takes "
            f"{_ratio_at_largest(numbers, 'ms', part)} of the time"
        )
    for name, costs in numbers["models"].items():
        times = zip(numbers["sides"], costs["ms"][BACKBONE], strict=True)
        failed = [side for side, x in times if x is None]
        findings += [f"{name} runs out of memory at {side} x {side}" for side in failed]
    return findings


def _plot(numbers: Mapping[str, Any], quantity: str, title: str) -> Figure:
    parts = [part for part in _all_parts(numbers) if not part.startswith("attention")]
    columns = 3
    rows = math.ceil(len(parts) / columns)
    figure, axes = make_grid(rows, columns, (4.2 * columns, 3.6 * rows))
    pixels = [side**2 for side in numbers["sides"]]
    for part, panel in zip(parts, axes.flat, strict=False):
        panel.set_axis_on()
        for number, name in enumerate(numbers["models"]):
            _draw(panel, numbers, name, quantity, part, f"C{number}")
        panel.set(title=part, xlabel="pixels", ylabel=title, xscale="log", yscale="log")
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** 0.4)  # Room for the legend.
        panel.set_xticks(pixels, [f"{side}²" for side in numbers["sides"]])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="upper left")
    return figure


def _all_parts(numbers: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(part for x in numbers["models"].values() for part in x["ms"]))


def _draw(
    panel: Axes, numbers: Mapping[str, Any], name: str, quantity: str, part: str, color: str
) -> None:
    costs = numbers["models"][name][quantity]
    attention = f"attention of {part}"
    for key, style, label in ((part, "o-", name), (attention, "--", f"{name}, attention")):
        if key not in costs:
            continue
        scale = 1e-9 if quantity == "flops" else 1.0
        points = zip(numbers["sides"], costs[key], strict=True)
        measured = [(side**2, scale * x) for side, x in points if x]
        exponent = numbers["exponents"][name][quantity][key]
        label += "" if exponent is None else f": {exponent:.2f}"
        x, y = zip(*measured, strict=True) if measured else ((), ())
        panel.plot(x, y, style, color=color, label=label)
    points = zip(numbers["sides"], costs.get(part, ()), strict=False)
    failed = [side**2 for side, x in points if x is None]
    if failed:
        panel.plot(
            failed,
            [0.06] * len(failed),
            "x",
            color=color,
            markersize=10,
            transform=panel.get_xaxis_transform(),
            label=f"{name}: out of memory",
        )
