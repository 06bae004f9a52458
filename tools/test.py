"""Test a checkpoint of a detector or segmentor on the test set of its config."""

import argparse
import os

from slide_mm.engine import exit_on_user_error, test
from slide_mm.engine.config import OptionAction

EXAMPLE = """example:
  python tools/test.py configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py \\
      work_dirs/demo/iter_600.pth --out predictions.pkl --show-dir pictures
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="weights of the config's model")
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
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=OptionAction,
        metavar="KEY=VALUE",
        help="override config values, such as test_dataloader.num_workers=0 or key='[a,b]'",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="who started the processes of a distributed test",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    with exit_on_user_error():
        args = vars(parse_args())
        # Older launchers hand the local rank over as an argument; MMEngine reads the environment.
        local_rank = args.pop("local_rank")
        if local_rank is not None:
            os.environ.setdefault("LOCAL_RANK", str(local_rank))
        test(**args)


if __name__ == "__main__":
    main()
