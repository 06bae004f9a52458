"""Time, memory and operations of a backbone and its stages, by the size of the image."""

import copy
import ctypes
import itertools
import math
import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import nn

from slide_mm.analysis.benchmark import (
    fit_exponent,
    read_peak,
    reset_peak,
    run_in_fresh_process,
)
from slide_mm.analysis.complexity import counting_flops
from slide_mm.analysis.local_attention.section import Picture, Section
from slide_mm.analysis.local_attention.stages import stages_of
from slide_mm.engine.timing import spread_of, synchronize

# Times that each size runs after the run that doesn't count, and those above one and ten seconds.
ROUNDS, SLOW_ROUNDS, SLOWEST_ROUNDS = 7, 3, 1
BACKBONE = "backbone"
QUANTITIES = {"ms": "time, ms", "mib": "peak memory, MiB", "flops": "operations, G multiply-adds"}
_WARM_UP_SIDE = 64
# A name, the module that runs first and the one that runs last.
_Part = tuple[str, nn.Module, nn.Module]
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


def stage_part(stage: int) -> str:
    """Name of a stage, counted from 0."""
    return f"stage {stage + 1}"


def attention_part(stage: int) -> str:
    """Name of the attention layers of a stage, counted from 0."""
    return f"attention of stage {stage + 1}"


def check_cost(
    models: Mapping[str, nn.Module], sides: Sequence[int], device: torch.device
) -> Section:
    """Measure what models cost at several sizes.

    Args:
        models: Backbones by name, in evaluation mode; the first is compared with the others.
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
    numbers["exponents"] = {
        name: _fit(sides, costs, fit_exponent) for name, costs in numbers["models"].items()
    }
    # Where a linear and a quadratic part add up, the exponent grows with the image.
    numbers["exponents_of_largest"] = {
        name: _fit(sides, costs, _last_exponent) for name, costs in numbers["models"].items()
    }
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


def run_if_it_fits(function: Callable[..., Any], *arguments: Any) -> Any | None:
    """Call a function of a module in a fresh process; None if memory has run out there."""
    try:
        return run_in_fresh_process(function, *arguments)
    except (MemoryError, torch.cuda.OutOfMemoryError, BrokenProcessPool):
        return None  # A system that runs out of memory kills the process.
    except RuntimeError as error:
        if "allocate memory" in str(error):  # PyTorch's own words on a CPU.
            return None
        raise


def measure_forward(pickled: bytes, side: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Measure forward passes: ``ms`` as a spread, and ``mib``, by part."""
    model = pickle.loads(pickled).to(device)
    # Apart, as a block works otherwise when its attention layer is watched.
    groups = outer_parts(model), attention_parts(model)
    times: dict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        model(torch.randn(1, 3, _WARM_UP_SIDE, _WARM_UP_SIDE, device=device))
        image = torch.randn(1, 3, side, side, device=device)
        memory = _Memory(device)
        for parts in groups:
            start = time.perf_counter()
            with watch(parts, memory.begin, memory.end):
                model(image)
            seconds = time.perf_counter() - start
            for _ in range(_rounds_of(seconds)):
                tally = _Tally(lambda: _milliseconds(device))
                with watch(parts, tally.begin, tally.end):
                    model(image)
                for part, total in tally.totals.items():
                    times[part].append(total)
    return {
        part: {"ms": spread_of(values)._asdict(), "mib": memory.peaks[part]}
        for part, values in times.items()
    }


def _rounds_of(seconds: float) -> int:
    if seconds > 10:
        return SLOWEST_ROUNDS
    return SLOW_ROUNDS if seconds > 1 else ROUNDS


def _milliseconds(device: torch.device) -> float:
    synchronize(device)
    return 1e3 * time.perf_counter()


def outer_parts(model: nn.Module) -> list[_Part]:
    """A backbone and its stages."""
    stages = enumerate(stages_of(model))
    return [
        (BACKBONE, model, model),
        *((stage_part(index), stage.first, stage.last) for index, stage in stages),
    ]


def attention_parts(model: nn.Module) -> list[_Part]:
    """The attention layers of a backbone."""
    return [
        (attention_part(index), mixer, mixer)
        for index, stage in enumerate(stages_of(model))
        for mixer in stage.mixers
    ]


@contextmanager
def watch(
    parts: Sequence[_Part], begin: Callable[[str], None], end: Callable[[str], None]
) -> Iterator[None]:
    """Call functions before and after parts of a model run."""
    handles = []
    for name, first, last in parts:
        handles += [
            first.register_forward_pre_hook(lambda *_, name=name: begin(name)),
            last.register_forward_hook(lambda *_, name=name: end(name)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Tally:
    """How far a counter goes while each part runs."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.totals: dict[str, Any] = defaultdict(int)

    def begin(self, part: str) -> None:
        self.totals[part] -= self.read()

    def end(self, part: str) -> None:
        self.totals[part] += self.read()


class _Memory:
    """Peaks of nested parts: each part's is the highest above what was held when it began."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # glibc keeps what has been freed, and a later part would take it without being seen.
        on_cpu = device.type == "cpu"
        self.trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if on_cpu else None
        self.held: dict[str, float] = {}
        self.peaks: dict[str, float] = defaultdict(float)

    def _mark(self) -> float:
        peak = read_peak(self.device)
        for part, held in self.held.items():
            self.peaks[part] = max(self.peaks[part], peak - held)
        if self.trim is not None:
            self.trim(0)
        return reset_peak(self.device)

    def begin(self, part: str) -> None:
        self.held[part] = self._mark()

    def end(self, part: str) -> None:
        self._mark()
        del self.held[part]


@torch.no_grad()
def count_parts(model: nn.Module, side: int) -> dict[str, int]:
    """Count the multiply-adds of the backbone, its stages and their attention layers."""
    model = copy.deepcopy(model).to("meta")
    with counting_flops() as total:
        flops = _Tally(total)
        with watch([*outer_parts(model), *attention_parts(model)], flops.begin, flops.end):
            model(torch.empty(1, 3, side, side, device="meta"))
    return flops.totals


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
    sides: Sequence[int],
    costs: Mapping[str, Mapping[str, list]],
    fit: Callable[[Sequence[int], Sequence[float]], float],
) -> dict[str, dict[str, float | None]]:
    """Exponents by quantity and part, over the sizes that ran; None for fewer than two."""
    exponents: dict[str, dict[str, float | None]] = {}
    for quantity in QUANTITIES:
        exponents[quantity] = {}
        for part, values in costs[quantity].items():
            measured = [(n**2, x) for n, x in zip(sides, values, strict=True) if x]
            exponents[quantity][part] = (
                fit(*zip(*measured, strict=True)) if len(measured) > 1 else None
            )
    return exponents


def _last_exponent(pixels: Sequence[int], values: Sequence[float]) -> float:
    return fit_exponent(pixels[-2:], values[-2:])


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

    Args:
        sides: Sides of square images, ascending.
        ratios: A ratio for each, None where it is unknown.
        noise: Ratios within so much of 1 are passed over.
    """
    known = [
        (math.log(side), math.log(ratio))
        for side, ratio in zip(sides, ratios, strict=True)
        if _differs(ratio, noise)
    ]
    return [
        math.exp(side + (next_side - side) * start / (start - stop))
        for (side, start), (next_side, stop) in itertools.pairwise(known)
        if (start < 0) != (stop < 0)
    ]


def _differs(ratio: float | None, noise: float) -> bool:
    return ratio is not None and abs(ratio - 1) > noise


def _where_cheaper(numbers: Mapping[str, Any], quantity: str, part: str) -> str:
    ratios = numbers["ratios"][quantity].get(part, ())
    noise = _NOISE[quantity]
    sizes = [(n, x) for n, x in zip(numbers["sides"], ratios, strict=False) if _differs(x, noise)]
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
    figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in axes[len(parts) :]:
        panel.set_axis_off()
    pixels = [side**2 for side in numbers["sides"]]
    for part, panel in zip(parts, axes, strict=False):
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
    exponents = numbers["exponents"][name][quantity]
    attention = f"attention of {part}"
    for key, style, label in ((part, "o-", name), (attention, "--", f"{name}, attention")):
        if key not in costs:
            continue
        scale = 1e-9 if quantity == "flops" else 1.0
        points = zip(numbers["sides"], costs[key], strict=True)
        measured = [(side**2, scale * x) for side, x in points if x]
        exponent = exponents[key]
        label += "" if exponent is None else f": {exponent:.2f}"
        panel.plot(*(zip(*measured, strict=True) if measured else ([], [])), style, color=color)
        panel.lines[-1].set_label(label)
    points = zip(numbers["sides"], costs.get(part, ()), strict=False)
    failed = [side**2 for side, x in points if x is None]
    if failed:
        places = [0.06] * len(failed)
        transform = panel.get_xaxis_transform()
        panel.plot(failed, places, "x", color=color, markersize=10, transform=transform)
        panel.lines[-1].set_label(f"{name}: out of memory")
