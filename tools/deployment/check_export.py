"""Compare exported files with PyTorch, in all their runtimes: numbers and latency."""

import argparse

from slide_mm.analysis.deployment_benchmark import check_exports, find_mistakes, format_check
from slide_mm.engine import ConfigError, exit_on_user_error
from slide_mm.engine.command_line import make_parser

EXAMPLE = """example:
  python tools/deployment/check_export.py segmentor.onnx configs/demo/slide-pvtv2-b0_fpn_demo.py
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("files", nargs="+", help="files that export.py has written")
    parser.add_argument("config", help="config, or folder of pack.py, that they were made from")
    parser.add_argument(
        "--checkpoint", help="weights that they were made from (default: those that a file names)"
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=(800, 1280),
        metavar=("H", "W"),
        help="size of the image for the latencies (default: 800 1280)",
    )
    parser.add_argument("--rounds", type=int, default=10, help="times that each runs (default: 10)")
    parser.add_argument(
        "--threads", type=int, help="threads of each (default: as many as PyTorch takes)"
    )
    parser.add_argument("--out", metavar="FILE", help="picture of the latencies to write")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        report = check_exports(**vars(args))
        print(format_check(report))
        mistakes = find_mistakes(report)
        if mistakes:
            raise ConfigError("; ".join(mistakes))


if __name__ == "__main__":
    main()
