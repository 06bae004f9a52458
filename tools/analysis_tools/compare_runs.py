"""Compare after how many iterations trainings reach a value of a metric, and draw their curves."""

import argparse

from slide_mm.engine import exit_on_user_error
from slide_mm.engine.comparison import compare_runs

EXAMPLE = """example:
  python tools/analysis_tools/compare_runs.py "from scratch=work_dirs/from_scratch" \\
      "pretrained=work_dirs/pretrained" --target 0.4
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="NAME=WORK_DIR", help="what to call a training, and its folder"
    )
    parser.add_argument(
        "--metric", default="coco/bbox_mAP", help="name in the log (default: %(default)s)"
    )
    parser.add_argument("--target", type=float, required=True, help="the value to reach")
    parser.add_argument(
        "--out",
        default="work_dirs/compared_runs.png",
        help="picture to write (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # A lone WORK_DIR is its own name.
    work_dirs = {run.partition("=")[0]: run.rpartition("=")[2] for run in args.runs}
    with exit_on_user_error():
        reached = compare_runs(work_dirs, args.metric, args.target, args.out)
    for name, step in reached.items():
        when = f"iteration {step}" if step else "never"
        print(f"{name}: {args.metric} of {args.target:g} first seen at: {when}")
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
