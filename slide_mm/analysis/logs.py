"""Curves of trainings, from MMEngine's logs."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from matplotlib.figure import Figure

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.outputs import PICTURES, check_output
from slide_mm.engine.reporting import ConfigError

# (step, value) pairs by name. Steps are iterations, or epochs where metrics are logged by epoch.
Scalars = dict[str, list[tuple[int, float]]]

# Logged with the others, and about the run rather than the model.
_NOT_DRAWN = {"base_lr", "data_time", "epoch", "iter", "memory", "time"}
_MAX_COLUMNS = 4


def plot_logs(
    runs: Sequence[str], out: str, keys: Sequence[str] | None = None, target: float | None = None
) -> dict[str, int | None]:
    """Draw what several trainings have logged in one picture.

    Args:
        runs: Their work folders, each perhaps with a name for the legend, as in ``NAME=FOLDER``.
        out: Picture to write.
        keys: What to draw. Default: losses, learning rate and all metrics.
        target: A value of the only key, to look for. Default: none.

    Returns:
        With a target, the step of the first record of at least that value by the run's name, None
        where a run has none; without, nothing.

    Raises:
        ConfigError: If a folder holds no log, none has a key, the target is of no single key or of
            one that a run lacks, or the picture can't be written.
    """
    out = check_output(out, PICTURES)
    scalars = {name: read_scalars(folder) for name, folder in _name_runs(runs).items()}
    for name, run in scalars.items():
        if not run:
            raise ConfigError(
                f"{name} holds the log of a test, which has no curves: give a training"
            )
    logged = {key: points for run in scalars.values() for key, points in run.items()}
    unknown = [key for key in keys or () if key not in logged]
    if unknown:
        raise ConfigError(f"no run has logged {unknown[0]}: choose among {', '.join(logged)}")
    reached = {} if target is None else _find_target(scalars, keys, target)
    with write_atomically(out) as file:
        plot_runs(scalars, file, keys or list_curves(logged))
    return reached


def _name_runs(runs: Sequence[str]) -> dict[str, str]:
    """Work folders by the names given, or else by what their paths don't share."""
    pairs = [("", "", run) if os.path.isdir(run) else run.rpartition("=") for run in runs]
    paths = [os.path.abspath(folder) for _, _, folder in pairs]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {
        name or Path(path).relative_to(common).as_posix(): path
        for (name, _, _), path in zip(pairs, paths, strict=True)
    }


def _find_target(
    runs: Mapping[str, Scalars], keys: Sequence[str] | None, target: float
) -> dict[str, int | None]:
    if not keys or len(keys) != 1:
        raise ConfigError(f"--target {target:g} is a value of one key: name it with --keys")
    (key,) = keys
    lacking = [name for name, scalars in runs.items() if key not in scalars]
    if lacking:
        raise ConfigError(f"{lacking[0]} has not logged {key}, which --target looks for")
    return {
        name: next((step for step, value in scalars[key] if value >= target), None)
        for name, scalars in runs.items()
    }


def read_scalars(run_dir: str | Path) -> Scalars:
    """Read what the last training in a work folder has logged, also if it was resumed.

    A log that begins later than the one before it goes on with that training; what the earlier
    one says of the same steps is left out.

    Args:
        run_dir: Work folder of ``tools/train.py`` or ``tools/test.py``.

    Returns:
        (step, value) pairs by name, such as ``'loss'`` or ``'coco/bbox_mAP'``; empty for a test,
        whose metrics have no step.

    Raises:
        ConfigError: If there is no log.
    """
    logs = sorted(Path(run_dir).glob("*/vis_data/scalars.json"))
    if not logs:
        raise ConfigError(f"{run_dir} holds no log of a training: give its work folder")
    scalars: Scalars = {}
    for log in logs:
        scalars = _join(scalars, _read_log(log))
    return scalars


def _read_log(path: Path) -> Scalars:
    scalars: Scalars = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):  # A killed process leaves half a line.
            record = json.loads(line)
            step = record.pop("step", None)
            for name, value in record.items() if step is not None else ():
                scalars.setdefault(name, []).append((step, value))
    return scalars


def _join(earlier: Scalars, later: Scalars) -> Scalars:
    common = earlier.keys() & later.keys()
    if not common or any(later[name][0][0] <= earlier[name][0][0] for name in common):
        return later or earlier
    return {
        name: [point for point in earlier.get(name, []) if point[0] < points[0][0]] + points
        for name, points in {**earlier, **later}.items()
    }


def list_curves(scalars: Scalars) -> list[str]:
    """Names worth drawing: the loss, its parts, the learning rate, and then all others."""
    names = [name for name in scalars if name not in _NOT_DRAWN]
    return sorted(names, key=lambda name: (name != "loss", "loss" not in name, name != "lr"))


def plot_runs(
    runs: Mapping[str, Scalars],
    out: str | Path,
    names: Sequence[str],
    labels: Mapping[str, str] | None = None,
) -> None:
    """Draw what trainings have logged, a panel for each name and a line for each run.

    Args:
        runs: See :func:`read_scalars`, by the run's name in the legend.
        out: Picture to write.
        names: What to draw. A run that lacks one has no line there.
        labels: Titles of panels by name. Default: the names.
    """
    num_columns = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(names))))
    num_rows = math.ceil(len(names) / num_columns)
    figure = Figure(figsize=(3.6 * num_columns, 2.6 * num_rows + 0.4), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        for index, (run, scalars) in enumerate(runs.items()):
            points = scalars.get(name, [])
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                color=f"C{index}",
                label=run,
                marker="." if len(points) < 30 else None,
            )
        axes.set_title((labels or {}).get(name, name), fontsize="medium")
        axes.set_xlabel(_count(runs.values(), name), fontsize="small")
        axes.tick_params(labelsize="small")
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(out, dpi=110)


def _count(runs: Iterable[Scalars], name: str) -> str:
    """What the steps of a name count. Trainings by epoch log metrics, and only them, by epoch."""
    for scalars in runs:
        points, iterations = scalars.get(name, []), scalars.get("iter", [])
        by_epoch = "epoch" in scalars and len(points) != len(iterations)
        if points and by_epoch and points[-1][0] < iterations[-1][0]:
            return "epoch"
    return "iteration"
