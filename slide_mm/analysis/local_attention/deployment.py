"""The deployed form of a backbone against its training form."""

import pickle
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from timm.utils.model import reparameterize_model

from slide_mm.analysis.local_attention.measuring import ROUNDS, run_if_it_fits
from slide_mm.analysis.local_attention.section import Picture, Section
from slide_mm.engine.timing import measure_times
from slide_mm.models.backbone import HierarchicalBackbone

_TEXT = """\
timm's reparameterize_model folds shifts, learned kernels and biases into constants. Both forms \
run by turns on the same square image, in evaluation mode. The difference is the largest of any \
value of any output, relative to the largest value of that output."""


def check_deployment(
    model: HierarchicalBackbone, sides: Sequence[int], device: torch.device
) -> Section:
    """Compare the two forms of a backbone in outputs and time, on square images."""
    pickled = pickle.dumps(model)
    points = {side: run_if_it_fits(compare_forms, pickled, side, device) for side in sides}
    measured = {side: point for side, point in points.items() if point}
    largest = max((x["difference"] for x in measured.values()), default=None)
    return Section(
        name="deployment",
        title="The deployed form",
        text=_TEXT,
        numbers={"sides": list(sides), "points": [points[side] for side in sides]},
        findings=[] if largest is None else [f"largest relative difference: {largest:.1e}"],
        header=["image", "difference", "training form, ms", "deployed, ms", "ratio"],
        lines=[[f"{side} x {side}", *_cells(point)] for side, point in points.items()],
        pictures=[
            Picture("deployment", "Deployed form against training form", _plot(measured)),
        ],
    )


def _cells(point: dict[str, float] | None) -> list[str]:
    if point is None:
        return ["out of memory"] * 4
    training, deployed = point["training_ms"], point["deployed_ms"]
    ratio = deployed / training
    return [f"{point['difference']:.1e}", f"{training:.1f}", f"{deployed:.1f}", f"{ratio:.3f}"]


def compare_forms(pickled: bytes, side: int, device: torch.device) -> dict[str, float]:
    """Difference of the outputs, relative, and median times in milliseconds."""
    model = pickle.loads(pickled).to(device)
    deployed = reparameterize_model(model)
    image = torch.randn(1, 3, side, side, device=device)
    with torch.inference_mode():
        pairs = zip(model(image), deployed(image), strict=True)
        difference = max(((x - y).abs().max() / x.abs().max()).item() for x, y in pairs)
        times = measure_times(
            {"training": lambda: model(image), "deployed": lambda: deployed(image)},
            ROUNDS,
            device,
            f"deployed form: {side} x {side}",
        )
    medians = {f"{name}_ms": spread.median for name, spread in times.items()}
    return {"difference": difference, **medians}


def _plot(points: dict[int, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    sides = list(points)
    left.plot(sides, [x["difference"] for x in points.values()], "o-")
    left.set(ylabel="largest relative difference")
    left.set_yscale("symlog", linthresh=1e-8)  # It may be 0.
    left.set_ylim(0, 10 * max([1e-6, *(x["difference"] for x in points.values())]))
    right.plot(sides, [x["deployed_ms"] / x["training_ms"] for x in points.values()], "o-")
    right.axhline(1, color="black", linestyle=":")
    right.set(ylabel="time, deployed / training", ylim=(0, 1.5))
    for axes in (left, right):
        axes.set(xlabel="side of the image, pixels")
        axes.set_xticks(sides, map(str, sides))
        axes.grid(alpha=0.3)
    return figure
