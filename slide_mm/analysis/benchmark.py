"""What the benchmarks share: time, memory, what the machine can do, and the command line."""

import argparse
import gc
import json
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.outputs import PICTURES, check_device, check_output
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.timing import measure_times


class Memory(NamedTuple):
    """Memory that a computation takes beyond its inputs, at the peak, in MiB."""

    forward: float
    both: float


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


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent e of the power law c * size**e that lies nearest to the values, by logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


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


def add_benchmark_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Declare the options of every benchmark.

    Args:
        parser: The command's parser.
        name: What is measured; names the picture.
    """
    parser.add_argument("--rounds", type=int, default=10, help="times that each runs (default: 10)")
    parser.add_argument(
        "--threads", type=int, help="threads on the CPU (default: as many as PyTorch takes)"
    )
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, too")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path("work_dirs", "benchmarks", f"{name}.png"),
        help="picture to write (default: %(default)s)",
    )


def run_benchmark(
    args: argparse.Namespace,
    measure: Callable[[torch.device], Mapping[str, Any]],
    show: Callable[[Mapping[str, Any]], str],
    plot: Callable[[Mapping[str, Any], Path], None],
) -> None:
    """Measure, print the tables, draw the picture and write the figures.

    Args:
        args: What :func:`add_benchmark_options` has declared.
        measure: Makes a report, with its ``environment``, on a device.
        show: Lays a report out as text.
        plot: Draws a report into a file.

    Raises:
        ConfigError: If an option is wrong; nothing has been measured then.
    """
    for name in ("rounds", "threads"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name} is {number}: give a positive number")
    device = check_device(args.device)
    if args.json:
        check_output(args.json)
    check_output(args.out, PICTURES)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    report = measure(device)
    print("\n" + "\n".join(f"{key}: {value}" for key, value in report["environment"].items()))
    print(f"\n{show(report)}")
    plot(report, args.out)
    print(f"\npicture: {args.out}")
    if args.json:
        with write_atomically(args.json) as file:
            file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"figures: {args.json}")
