"""Compile the GPU kernels for NVIDIA GPUs that need not be there, and count their registers."""

import argparse

from slide_mm.analysis.benchmark import DTYPES
from slide_mm.analysis.gpu_kernels import format_resources
from slide_mm.engine.command_line import make_parser
from slide_mm.ops.gpu_kernel import HEAD_DIMS

EXAMPLE = """example:
  python tools/analysis_tools/inspect_gpu_kernels.py --head-dims 32 64 --dtypes bfloat16

Bytes behind a plus are those of registers that a thread spills into memory.
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--head-dims",
        nargs="+",
        type=int,
        choices=HEAD_DIMS,
        default=HEAD_DIMS,
        help="channels a head (default: all)",
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="types (default: all)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    print(format_resources(args.head_dims, [DTYPES[name] for name in args.dtypes]))


if __name__ == "__main__":
    main()
