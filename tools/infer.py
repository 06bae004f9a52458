"""Put a detector's or segmentor's predictions on images, and write them down."""

import argparse

from slide_mm.engine import exit_on_user_error
from slide_mm.engine.command_line import make_parser
from slide_mm.inference import infer

EXAMPLE = """example:
  python tools/infer.py configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py \\
      work_dirs/demo/detection/iter_1100.pth data/demo_scenes/images/validation --out predictions

A folder that pack.py has written stands for config and checkpoint:
  python tools/infer.py digits data/demo_scenes/images/validation --out predictions

Images that cannot be read are named and passed over; the exit code is 1 if none can be read.
Images far larger than those of the training are predicted tile by tile.
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("config", help="config file, or a folder of pack.py")
    parser.add_argument(
        "checkpoint", nargs="?", help="weights of the config's model (default: the folder's)"
    )
    parser.add_argument(
        "inputs", metavar="INPUT", help="an image, a folder of images or a pattern like 'a/*.jpg'"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder to write to (default: work_dirs/CONFIG/inference)"
    )
    parser.add_argument(
        "--score-thr",
        type=float,
        default=0.3,
        help="least score of a detection to draw and write down (default: 0.3)",
    )
    parser.add_argument("--device", help="such as cpu or cuda (default: a GPU if there is one)")
    return parser.parse_intermixed_args()


def main() -> None:
    args = vars(parse_args())
    with exit_on_user_error():
        out, results = infer(**args)
    print(f"images predicted: {len(results['images'])}, see {out}/pictures, {out}/results.json")
    unreadable = [item["file"] for item in results["unreadable"]]
    if unreadable:
        print(f"images passed over: {len(unreadable)} ({', '.join(unreadable)})")


if __name__ == "__main__":
    main()
