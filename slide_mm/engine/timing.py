"""Times of computations that could take each other's place, and what they depend on."""

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from slide_mm import __version__

# A contender whose first round takes longer than this, in seconds, has done with few rounds.
_SLOW, _SLOW_ROUNDS = 1.0, 3


class Spread(NamedTuple):
    """Median and quartiles of the times of so many runs, in milliseconds."""

    median: float
    low: float
    high: float
    rounds: int


def measure_times(
    runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, label: str
) -> dict[str, Spread]:
    """Time computations by turns, so that whatever slows the machine slows all of them.

    Args:
        runs: The computations, by name.
        rounds: Times that each runs, after one that doesn't count; those that take more than a
            second run three times.
        device: Where they run.
        label: What is timed, shown with the progress.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    wanted = dict.fromkeys(runs, rounds)
    for number in range(rounds + 1):
        print(f"{label}: round {number} of {rounds}", file=sys.stderr, flush=True)
        for name, run in runs.items():
            if len(times[name]) == wanted[name]:
                continue
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            seconds = time.perf_counter() - start
            if number > 0:
                times[name].append(1e3 * seconds)
            elif seconds > _SLOW:
                wanted[name] = min(rounds, _SLOW_ROUNDS)
    return {name: spread_of(values) for name, values in times.items()}


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def spread_of(values: Sequence[float]) -> Spread:
    """Summarise times of repeated runs."""
    quantiles = torch.tensor(values).quantile(torch.tensor([0.5, 0.25, 0.75])).tolist()
    return Spread(*quantiles, len(values))


def forward_of(function: Callable[[], Any]) -> Callable[[], None]:
    """A function that computes forward, without a graph."""

    def run() -> None:
        with torch.no_grad():
            function()

    return run


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    on_cpu = device.type == "cpu"
    device_name = "cpu" if on_cpu else torch.get_device_module(device).get_device_name(device)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "slide_mm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name,
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
