"""MMEngine's logs of a training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def read_scalars(run_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read what the last training or test in a work folder has logged.

    Args:
        run_dir: Work folder of ``tools/train.py`` or ``tools/test.py``. A training that has been
            resumed there counts as one.

    Returns:
        (step, value) pairs by name, such as ``'loss'`` or ``'coco/bbox_mAP'``; empty for a test,
        whose metrics have no step.

    Raises:
        FileNotFoundError: If there is no log.
    """
    logs = sorted(Path(run_dir).glob("*/vis_data/scalars.json"))
    if not logs:
        raise FileNotFoundError(f"{run_dir} holds no log of a training: give its work folder")
    records: list[dict[str, float]] = []
    for log in logs:
        new = [json.loads(line) for line in log.read_text().splitlines()]
        new = [record for record in new if "step" in record]
        # A resumed training goes on after its checkpoint, a new one begins at the beginning.
        first = min((record["step"] for record in new), default=0)
        records = [record for record in records if record["step"] < first] + new
    scalars: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                scalars.setdefault(name, []).append((record["step"], value))
    return scalars


def plot_run(
    scalars: Mapping[str, Sequence[tuple[int, float]]],
    metrics: Mapping[str, str],
    out: str | Path,
    title: str,
) -> None:
    """Plot the loss and some metrics of one training over its iterations.

    Args:
        scalars: See :func:`read_scalars`.
        metrics: Label by name of the metrics to draw, which lie between 0 and 1.
        out: Picture to write.
        title: Its headline.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*scalars["loss"], strict=True))
    left.set(xlabel="iteration", ylabel="training loss", ylim=(0, None))
    for name, label in metrics.items():
        right.plot(*zip(*scalars[name], strict=True), marker="o", label=label)
    right.set(xlabel="iteration", ylabel="on held-out scenes", ylim=(0, 1))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=120)


def plot_metric(
    runs: Mapping[str, Sequence[tuple[int, float]]], label: str, target: float, out: str | Path
) -> None:
    """Plot one metric of several trainings over their iterations.

    Args:
        runs: (step, value) pairs by what to call a training.
        label: What the metric is called.
        target: Value to draw a line at.
        out: Picture to write.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, values in runs.items():
        axes.plot(*zip(*values, strict=True), marker="o", markersize=3, label=name)
    axes.axhline(target, color="gray", linestyle="--", linewidth=1)
    axes.set(xlabel="iteration", ylabel=label, xlim=(0, None), ylim=(0, None))
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(out, dpi=100)
