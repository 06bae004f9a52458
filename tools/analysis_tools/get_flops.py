"""Count the operations and parameters of a detector or segmentor; needs no weights and no data."""

import argparse
import json

from slide_mm.analysis.complexity import get_flops
from slide_mm.engine import exit_on_user_error
from slide_mm.engine.command_line import make_parser

EXAMPLE = """example:
  python tools/analysis_tools/get_flops.py configs/slide_pvt/mask-rcnn_slide-pvt-t_fpn_1x_coco.py \\
      --shape 800 1280
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="size of the image (default: 800 1280 for detection, 512 2048 for segmentation)",
    )
    parser.add_argument("--json", action="store_true", help="print exact numbers as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        (height, width), (flops, params) = get_flops(args.config, args.shape)
    if args.json:
        print(json.dumps(dict(shape=[height, width], flops=flops, params=params)))
    else:
        print(f"image   {height} x {width}")
        print(f"FLOPs   {flops / 1e9:.2f} G multiply-adds")
        print(f"params  {params / 1e6:.2f} M")


if __name__ == "__main__":
    main()
