"""Read all images and annotations that a config would use, and say what is missing or broken."""

import argparse
import sys

from slide_mm.engine import exit_on_user_error, inspect_data
from slide_mm.engine.command_line import add_cfg_options, make_parser

EXAMPLE = """example:
  python tools/misc/check_data.py configs/slide_pvt/mask-rcnn_slide-pvt-t_fpn_1x_coco.py

The exit code is 0 where all is well, and 1 otherwise.
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("config", help="config file")
    add_cfg_options(parser, "train_dataloader.dataset.data_root=/data/coco/")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read (default: one a core)"
    )
    return parser.parse_args()


def main() -> int:
    problems = 0
    with exit_on_user_error():
        args = parse_args()
        for report in inspect_data(args.config, args.cfg_options, args.workers):
            print(report, flush=True)
            problems += len(report.problems)
    print(
        f"problems: {problems}; docs/data.md tells how the data is laid out" if problems else "ok"
    )
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
