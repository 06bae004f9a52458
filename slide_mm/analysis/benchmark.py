"""What the benchmarks share: time, memory, what the machine can do, and the command line."""

import argparse
import gc
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.outputs import PICTURES, check_device, check_output
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.timing import Spread, measure_times, synchronize

DTYPES = {str(x).removeprefix("torch."): x for x in (torch.float32, torch.float16, torch.bfloat16)}
# How computations are run, by the key of their times.
MODES = {"ms": "", "graph_ms": ", as a CUDA graph"}
# On a GPU, seconds of work to wait for at once: waiting takes as long as some computations.
_WORK = 0.01


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


def measure_calls(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    label: str,
    num_calls: int = 1,
) -> dict[str, Spread]:
    """Time computations as :func:`slide_mm.engine.timing.measure_times`, but a GPU's many at once.

    Args:
        runs: The computations, by name.
        rounds: Times that each is timed.
        device: Where they run.
        label: What is timed, shown with the progress.
        num_calls: Computations that each of them makes, the time of one of which is given.
    """
    repeats = {name: _count_repeats(run, device) for name, run in runs.items()}

    def repeat(name: str) -> None:
        for _ in range(repeats[name]):
            runs[name]()

    repeated = {name: partial(repeat, name) for name in runs}
    spreads = measure_times(repeated, rounds, device, label)
    return {
        name: Spread(*(x / (repeats[name] * num_calls) for x in spread[:-1]), spread.rounds)
        for name, spread in spreads.items()
    }


def _count_repeats(run: Callable[[], Any], device: torch.device) -> int:
    """How often a computation that has run before fills the time that is worth waiting for."""
    if device.type == "cpu":
        return 1
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return math.ceil(_WORK / (time.perf_counter() - start))


def list_modes(device: torch.device) -> list[str]:
    """In which of ``MODES`` computations are timed on a device."""
    return list(MODES) if device.type == "cuda" else ["ms"]


def try_run(run: Callable[[], Any], label: str) -> bool:
    """Run a computation once. Where that is impossible, tell why, and return False."""
    try:
        run()
    except Exception as error:  # Memory may be short, and others' libraries fail in many ways.
        reason = str(error).partition("\n")[0] or type(error).__name__
        print(f"{label}: {reason}", file=sys.stderr, flush=True)
        return False
    return True


def record_graphs(runs: Mapping[str, Callable[[], Any]]) -> dict[str, Callable[[], None]]:
    """Functions that do again by a CUDA graph, without launches, what computations do."""
    graphs: dict[str, Callable[[], None]] = {}

    def record(name: str) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                runs[name]()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            runs[name]()
        graphs[name] = graph.replay

    for name in runs:
        try_run(partial(record, name), f"{name}{MODES['graph_ms']}")
    return graphs


def measure_memory(
    build: Callable[..., tuple[Callable, Callable]], *arguments: Any, device: torch.device
) -> Memory:
    """Measure the peak memory of a computation: on a CPU, each time in a fresh process.

    Args:
        build: A function of a module, which gives the forward, and the forward and backward
            computation, for a size, and has run both at a small one.
        *arguments: Its arguments.
        device: Where it runs. On a CPU, peaks of the resident memory are taken, which Linux knows.
    """
    if device.type != "cpu":
        return Memory(*(_peak_of(run, device) for run in build(*arguments)))
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
    return _peak_of(build(*arguments)[index], device)


def _peak_of(run: Callable[[], None], device: torch.device) -> float:
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
        arithmetic: Floating-point operations a second, in a product of two square matrices: of side
            2048 on a CPU, 8192 on a GPU.
        bandwidth: Bytes a second, read and written, in a copy of 256 MiB.
    """

    arithmetic: float
    bandwidth: float

    def floor(self, operations: float, num_bytes: float) -> float:
        """Least time, in milliseconds, for so many operations and so much traffic."""
        return 1e3 * max(operations / self.arithmetic, num_bytes / self.bandwidth)


def measure_rates(
    device: torch.device, rounds: int = 7, dtype: torch.dtype = torch.float32
) -> Rates:
    """Measure what the machine can do, in a type, with PyTorch's threads."""
    side = 2048 if device.type == "cpu" else 8192
    matrix = torch.rand(side, side, device=device, dtype=dtype)
    source = torch.rand(64 << 20, device=device)
    target = torch.empty_like(source)
    runs = {"arithmetic": lambda: matrix @ matrix, "bandwidth": lambda: target.copy_(source)}
    times = measure_calls(runs, rounds, device, label="floors")
    work = {"arithmetic": 2 * side**3, "bandwidth": 2 * source.nbytes}
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
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="type of numbers (default: float32)"
    )
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
