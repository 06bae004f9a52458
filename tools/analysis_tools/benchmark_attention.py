"""Compare Slide Attention's forms with each other and with window attention, in time and memory."""

import argparse
from typing import Any

import torch

from slide_mm.analysis.attention_benchmark import (
    SHAPES,
    benchmark_attention,
    format_attention,
    plot_attention,
)
from slide_mm.analysis.attention_contenders import Shape, list_contenders, parse_shape
from slide_mm.analysis.benchmark import DTYPES, add_benchmark_options, run_benchmark
from slide_mm.engine import ConfigError, exit_on_user_error
from slide_mm.engine.command_line import make_parser
from slide_mm.engine.outputs import check_device

EXAMPLE = """example:
  python tools/analysis_tools/benchmark_attention.py --shapes A 2x64x64x4x32 --threads 2
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    shapes = ", ".join(f"{name} is {shape}" for name, shape in SHAPES.items())
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=list(SHAPES),
        metavar="SHAPE",
        help=f"BxHxWxHEADSxHEAD_DIM of query, key and value, or a name: {shapes} (default: all)",
    )
    parser.add_argument(
        "--contenders", nargs="+", metavar="NAME", help="only these (default: all that run here)"
    )
    parser.add_argument(
        "--scaling", action="store_true", help="also measure images from 512 x 512 to 2048 x 2048"
    )
    add_benchmark_options(parser, "attention")
    return parser.parse_args()


def read_shapes(texts: list[str]) -> dict[str, Shape]:
    try:
        return {text: parse_shape(text, SHAPES) for text in texts}
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_contenders(
    names: list[str] | None, device: torch.device, dtype: torch.dtype
) -> list[str]:
    known = list_contenders(device, dtype)
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ConfigError(f"no contender {unknown[0]!r} here: choose from {', '.join(known)}")
    return names or known


def main() -> None:
    args = parse_args()

    def measure(device: torch.device) -> dict[str, Any]:
        return benchmark_attention(shapes, names, args.rounds, device, args.scaling, dtype)

    with exit_on_user_error():
        shapes, dtype = read_shapes(args.shapes), DTYPES[args.dtype]
        names = check_contenders(args.contenders, check_device(args.device), dtype)
        run_benchmark(args, measure, format_attention, plot_attention)


if __name__ == "__main__":
    main()
