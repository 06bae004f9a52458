"""Run the tests of a GPU, then measure attention and whole backbones on it, in a few minutes."""

import argparse
import sys
from pathlib import Path

from slide_mm.analysis.gpu_trial import list_commands, run_commands
from slide_mm.engine import exit_on_user_error
from slide_mm.engine.command_line import make_parser
from slide_mm.engine.outputs import check_device, make_folder

EXAMPLE = """example:
  python tools/misc/try_gpu.py --minutes 6

It needs PyTorch with its Triton, timm, matplotlib and MMEngine, pytest for the tests, and takes
NATTEN along where it is installed. The exit code is 0 where all went well, and 1 otherwise.
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--minutes", type=float, default=6, help="break off after so many (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs", "gpu"),
        metavar="DIR",
        help="folder for figures and pictures (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    with exit_on_user_error():
        check_device("cuda")
        out = make_folder(args.out).absolute()
        results = run_commands(list_commands(out), args.minutes)
    print("\n" + "\n".join(f"{name}: {result}" for name, result in results.items()))
    print(f"figures and pictures: {out}")
    return int(any(result != "done" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
