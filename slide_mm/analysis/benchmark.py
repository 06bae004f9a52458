"""Time and memory of computations that could take each other's place."""

import gc
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slide_mm import __version__

# A contender whose first round takes longer than this, in seconds, has done with few rounds.
_SLOW, _SLOW_ROUNDS = 1.0, 3


class Spread(NamedTuple):
    """Times of repeated runs, in milliseconds.

    Attributes:
        median: The middle one.
        low: First quartile.
        high: Third quartile.
        rounds: How many there were.
    """

    median: float
    low: float
    high: float
    rounds: int


class Memory(NamedTuple):
    """Memory that a computation takes beyond its inputs, at the peak, in MiB."""

    forward: float
    both: float


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
            seconds = _time_once(run, device)
            if number > 0:
                times[name].append(1e3 * seconds)
            elif seconds > _SLOW:
                wanted[name] = min(rounds, _SLOW_ROUNDS)
    return {name: spread_of(values) for name, values in times.items()}


def _time_once(run: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def spread_of(values: Sequence[float]) -> Spread:
    """Summarise times of repeated runs."""
    quantiles = torch.tensor(values).quantile(torch.tensor([0.5, 0.25, 0.75])).tolist()
    return Spread(*quantiles, len(values))


def backward_of(function: Callable[[], Tensor], inputs: Iterable[Tensor]) -> Callable[[], None]:
    """A function that computes forward, and backward from a gradient of ones, which it keeps."""
    inputs = list(inputs)
    gradients: list[Tensor] = []

    def run() -> None:
        output = function()
        if not gradients:
            gradients.append(torch.ones_like(output))
        torch.autograd.grad(output, inputs, gradients, allow_unused=True)

    return run


def forward_of(function: Callable[[], Any]) -> Callable[[], None]:
    """A function that computes forward, without a graph."""

    def run() -> None:
        with torch.no_grad():
            function()

    return run


def measure_memory(
    build: Callable[..., tuple[Callable, Callable]], *arguments: Any, device: torch.device
) -> Memory:
    """Measure the peak memory of a computation, each time in a fresh process.

    Args:
        build: A function of a module, which gives the forward, and the forward and backward
            computation, for a size, and has run both at a small one.
        *arguments: Its arguments.
        device: Where it runs. On a CPU, peaks of the resident memory are taken, which Linux knows.
    """
    return Memory(
        *(run_in_fresh_process(_measure_peak, build, arguments, i, device) for i in range(2))
    )


def run_in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """Call a function of a module in a new process, with as many threads as this one has."""
    with ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(torch.get_num_threads(),),
    ) as pool:
        return pool.submit(function, *arguments).result()


def _measure_peak(build: Callable, arguments: tuple, index: int, device: torch.device) -> float:
    run = build(*arguments)[index]
    gc.collect()
    before = reset_peak(device)
    run()
    return read_peak(device) - before


def reset_peak(device: torch.device) -> float:
    """Forget the peak memory so far, and say how much is held now, in MiB.

    On a CPU this is the resident memory of the process, which Linux knows.
    """
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        return module.memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS") / 2**10


def read_peak(device: torch.device) -> float:
    """The most memory held since :func:`reset_peak`, in MiB."""
    if device.type != "cpu":
        return torch.get_device_module(device).max_memory_allocated(device) / 2**20
    return _resident("VmHWM") / 2**10


def _resident(key: str) -> int:
    """A line of the process's status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


def fit_exponent(sizes: Iterable[float], values: Iterable[float]) -> float:
    """Exponent e of the power law c * size**e that lies nearest to the values, by logarithms."""
    x = torch.tensor(list(sizes), dtype=torch.float64).log()
    y = torch.tensor(list(values), dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x @ x)).item()


class Rates(NamedTuple):
    """What a machine can do.

    Attributes:
        arithmetic: Floating-point operations a second, in a product of two 2048 x 2048 matrices.
        bandwidth: Bytes a second, read and written, in a copy of 256 MiB.
    """

    arithmetic: float
    bandwidth: float

    def floor(self, operations: float, num_bytes: float) -> float:
        """Least time, in milliseconds, for so many operations and so much traffic."""
        return 1e3 * max(operations / self.arithmetic, num_bytes / self.bandwidth)


def measure_rates(device: torch.device, rounds: int = 7) -> Rates:
    """Measure what the machine can do, in float32, with PyTorch's threads."""
    matrix = torch.rand(2048, 2048, device=device)
    source = torch.rand(64 << 20, device=device)
    target = torch.empty_like(source)
    runs = {"arithmetic": lambda: matrix @ matrix, "bandwidth": lambda: target.copy_(source)}
    times = measure_times(runs, rounds, device, label="floors")
    work = {"arithmetic": 2 * 2048**3, "bandwidth": 2 * source.nbytes}
    return Rates(*(work[name] / (1e-3 * times[name].low) for name in Rates._fields))


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "slide_mm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device) if device.type == "cpu" else _device_name(device),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _device_name(device: torch.device) -> str:
    return torch.get_device_module(device).get_device_name(device)
