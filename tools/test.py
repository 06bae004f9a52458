"""Test a checkpoint of a detector or segmentor on the test set of its config."""

from typing import Any

from slide_mm.engine import exit_on_user_error, test
from slide_mm.engine.command_line import make_parser, parse_run

EXAMPLE = """example:
  python tools/test.py configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py \\
      work_dirs/demo/iter_600.pth --out predictions.pkl --show-dir pictures
"""


def parse_args() -> dict[str, Any]:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("config", help="config file, or a folder of pack.py")
    parser.add_argument(
        "checkpoint", nargs="?", help="weights of the config's model (default: the folder's)"
    )
    parser.add_argument(
        "--work-dir", help="folder for logs (default: the config's own, or work_dirs/CONFIG)"
    )
    parser.add_argument(
        "--out",
        help="write the predictions: a .pkl file for detection, a folder for segmentation",
    )
    parser.add_argument(
        "--show", action="store_true", help="show pictures of the predictions in a window"
    )
    parser.add_argument("--show-dir", help="save pictures of the predictions in this folder")
    parser.add_argument(
        "--wait-time", type=float, default=2, help="seconds to show each picture (default: 2)"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: the config's own, or else the image and its mirror image",
    )
    return parse_run(parser, "test", "test_dataloader.num_workers=0")


def main() -> None:
    with exit_on_user_error():
        test(**parse_args())


if __name__ == "__main__":
    main()
