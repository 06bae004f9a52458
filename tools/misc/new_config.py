"""Write a config that trains a model on a folder of your data, and check both."""

import argparse
import sys
from pathlib import Path

from slide_mm.engine import exit_on_user_error, inspect_data
from slide_mm.engine.command_line import make_parser

EXAMPLE = """example:
  python tools/misc/new_config.py mask-rcnn_slide-swin-t --data data/fruit --out fruit.py
  python tools/misc/new_config.py slide-pvtv2-b0_fpn --data data/fields --out fields.py --epochs 20

The folder has annotations of COCO, YOLO, Pascal VOC or LabelMe, or images and label maps.
"""
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("base", help="config file, or the beginning of the name of one of ours")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="images and annotations")
    parser.add_argument("--out", required=True, metavar="FILE", help="config to write, .py")
    parser.add_argument(
        "--gpus", dest="num_gpus", type=int, default=1, metavar="N", help="that will train (1)"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="(default: by number of images)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images a GPU (default: the config's)"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="short side for testing, in pixels"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint that the backbone starts from"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws validation images where none are marked (0)"
    )
    return parser.parse_args()


def main() -> int:
    problems = 0
    with exit_on_user_error():
        args = parse_args()
        from slide_mm.new_config import write_config

        for line in write_config(**vars(args), configs=CONFIGS):
            print(line, flush=True)
        for report in inspect_data(args.out):
            print(report, flush=True)
            problems += len(report.problems)
    print(f"written: {args.out}")
    train = f"bash tools/dist_train.sh {args.out} {args.num_gpus}"
    if args.num_gpus == 1:
        train = f"python tools/train.py {args.out}"
    print(f"problems: {problems}; mend them, then: {train}" if problems else f"next: {train}")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
