"""Draw losses, learning rate and metrics of one or several trainings in one picture."""

import argparse

from slide_mm.engine import exit_on_user_error
from slide_mm.engine.logs import plot_logs

EXAMPLE = """example:
  python tools/analysis_tools/plot_logs.py work_dirs/demo/detection --out curves.png
  python tools/analysis_tools/plot_logs.py work_dirs/demo/detection \\
      work_dirs/demo-baseline/detection --keys loss coco/bbox_mAP --out compared.png
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run_dirs", nargs="+", metavar="RUN_DIR", help="work folder of a training, resumed or not"
    )
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="KEY",
        help="what to draw, as the log names it (default: losses, learning rate and all metrics)",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="picture to write: .png, .svg or .pdf"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        plot_logs(args.run_dirs, args.out, args.keys)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
