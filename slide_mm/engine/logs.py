"""Pictures of trainings."""

import os
from collections.abc import Sequence
from pathlib import Path

from slide_mm.analysis import list_curves, plot_runs, read_scalars
from slide_mm.analysis.logs import Scalars
from slide_mm.engine.outputs import PICTURES, check_output, write_atomically
from slide_mm.engine.reporting import ConfigError


def plot_logs(run_dirs: Sequence[str], out: str, keys: Sequence[str] | None = None) -> None:
    """Draw what several trainings have logged in one picture.

    Args:
        run_dirs: Their work folders.
        out: Picture to write.
        keys: What to draw. Default: losses, learning rate and all metrics.

    Raises:
        ConfigError: If a folder holds no log, none has a key, or the picture can't be written.
    """
    out = check_output(out, PICTURES)
    runs = {name: _read(run_dir) for name, run_dir in _name_runs(run_dirs).items()}
    logged = {name: points for scalars in runs.values() for name, points in scalars.items()}
    unknown = [key for key in keys or () if key not in logged]
    if unknown:
        raise ConfigError(f"no run has logged {unknown[0]}: choose among {', '.join(logged)}")
    with write_atomically(out) as file:
        plot_runs(runs, file, keys or list_curves(logged))


def _read(run_dir: str) -> Scalars:
    try:
        scalars = read_scalars(run_dir)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    if not scalars:
        raise ConfigError(
            f"{run_dir} holds the log of a test, which has no curves: give a training"
        )
    return scalars


def _name_runs(run_dirs: Sequence[str]) -> dict[str, str]:
    """Name runs in the legend by what their paths don't share."""
    paths = [os.path.abspath(run_dir) for run_dir in run_dirs]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {Path(path).relative_to(common).as_posix(): path for path in paths}
