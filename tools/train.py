"""Train the detector or segmentor of a config."""

import argparse
import os

from slide_mm.engine import exit_on_user_error, train
from slide_mm.engine.config import OptionAction

EXAMPLE = """example:
  python tools/train.py configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py --work-dir work_dirs/demo
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--work-dir",
        help="folder for logs and checkpoints (default: the config's own, or work_dirs/CONFIG)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from a checkpoint; without a name, from the last one in the work folder",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="automatic mixed precision: float16 on GPUs, bfloat16 on the CPU",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the total batch size",
    )
    parser.add_argument(
        "--no-validate",
        dest="validate",
        action="store_false",
        help="train without validation",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=OptionAction,
        metavar="KEY=VALUE",
        help="override config values, such as train_dataloader.batch_size=4 or key='[a,b]'",
    )
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        default="none",
        help="who started the processes of a distributed training",
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
        train(**args)


if __name__ == "__main__":
    main()
