"""What the benchmark commands share."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from slide_mm.engine.outputs import PICTURES, check_device, check_output, write_atomically
from slide_mm.engine.reporting import ConfigError


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
    device = _check_options(args)
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


def _check_options(args: argparse.Namespace) -> torch.device:
    for name in ("rounds", "threads"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name} is {number}: give a positive number")
    check_output(args.out, PICTURES)
    if args.json:
        check_output(args.json)
    return check_device(args.device)
