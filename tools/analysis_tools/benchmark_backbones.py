"""Compare whole backbones with those of MMDetection and timm, in time and memory."""

import argparse
import re

from slide_mm.analysis.backbone_benchmark import (
    FAMILIES,
    benchmark_backbones,
    format_backbones,
    plot_backbones,
)
from slide_mm.analysis.benchmark import DTYPES, add_benchmark_options, run_benchmark
from slide_mm.engine import ConfigError, exit_on_user_error
from slide_mm.engine.command_line import make_parser

EXAMPLE = """example:
  python tools/analysis_tools/benchmark_backbones.py --families swin --sizes 512x512 800x1280
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--families",
        nargs="+",
        choices=FAMILIES,
        default=list(FAMILIES),
        help="families of backbones (default: all)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["800x1280"],
        metavar="HxW",
        help="image sizes in pixels (default: 800x1280)",
    )
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default: 1)")
    add_benchmark_options(parser, "backbones")
    return parser.parse_args()


def read_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(size) < 32:
        raise ConfigError(f"size {text!r}: give HEIGHTxWIDTH, at least 32x32, like 800x1280")
    return size


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        sizes = [read_size(text) for text in args.sizes]
        if args.batch < 1:
            raise ConfigError(f"--batch is {args.batch}: give a positive number")
        run_benchmark(
            args,
            lambda device: benchmark_backbones(
                args.families, sizes, args.rounds, device, args.batch, DTYPES[args.dtype]
            ),
            format_backbones,
            plot_backbones,
        )


if __name__ == "__main__":
    main()
