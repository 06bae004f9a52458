"""Comparing trainings."""

from collections.abc import Mapping
from pathlib import Path

from slide_mm.analysis import plot_runs, read_scalars
from slide_mm.engine.reporting import ConfigError


def compare_runs(
    work_dirs: Mapping[str, str], metric: str, target: float, out: str
) -> dict[str, int | None]:
    """Tell when trainings were first seen at a value of a metric, and draw all curves.

    Args:
        work_dirs: Work folders of ``tools/train.py`` by what to call the training.
        metric: Name in the log, such as ``'coco/bbox_mAP'``.
        target: The value.
        out: Picture to write; its folder is made.

    Returns:
        By name the iteration of the first validation that found at least ``target``, None where
        none did.

    Raises:
        ConfigError: If a folder holds no training with that metric.
    """
    runs = {}
    for name, work_dir in work_dirs.items():
        try:
            runs[name] = {metric: read_scalars(work_dir)[metric]}
        except (FileNotFoundError, KeyError) as error:
            raise ConfigError(
                f"{work_dir} holds no training with {metric}: give work folders of tools/train.py, "
                "and a metric that their logs name"
            ) from error
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    plot_runs(runs, out, [metric])
    return {
        name: next((step for step, value in scalars[metric] if value >= target), None)
        for name, scalars in runs.items()
    }
