"""Draw losses, learning rate and metrics of one or several trainings in one picture.

With --target, also say after how many iterations each is first seen at a value of a metric.
"""

import argparse

from slide_mm.analysis.logs import plot_logs
from slide_mm.engine import exit_on_user_error
from slide_mm.engine.command_line import make_parser

EXAMPLE = """example:
  python tools/analysis_tools/plot_logs.py work_dirs/demo/detection --out curves.png
  python tools/analysis_tools/plot_logs.py work_dirs/demo/detection \\
      work_dirs/demo-baseline/detection --keys loss coco/bbox_mAP --out compared.png
  python tools/analysis_tools/plot_logs.py sliding=work_dirs/demo/detection \\
      original=work_dirs/demo-baseline/detection --keys coco/bbox_mAP --target 0.4 --out ap.png
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_DIR",
        help="work folder of a training, resumed or not; as NAME=RUN_DIR, with a name to show",
    )
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="KEY",
        help="what to draw, as the log names it (default: losses, learning rate and all metrics)",
    )
    parser.add_argument(
        "--target", type=float, metavar="VALUE", help="of the only key: say when it is reached"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="picture to write: .png, .svg or .pdf"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        reached = plot_logs(args.runs, args.out, args.keys, args.target)
    for name, step in reached.items():
        when = "never" if step is None else f"iteration {step}"
        print(f"{name}: {args.keys[0]} of {args.target:g} first seen at: {when}")
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
