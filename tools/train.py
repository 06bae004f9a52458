"""Train the detector or segmentor of a config."""

from typing import Any

from slide_mm.engine import exit_on_user_error, train
from slide_mm.engine.command_line import make_parser, parse_run

EXAMPLE = """example:
  python tools/train.py configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py --work-dir work_dirs/demo
"""


def parse_args() -> dict[str, Any]:
    parser = make_parser(__doc__, EXAMPLE)
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
        "--log",
        choices=("tensorboard", "wandb"),
        help="send curves there too, and pictures of predictions at each validation",
    )
    return parse_run(parser, "training", "train_dataloader.batch_size=4")


def main() -> None:
    with exit_on_user_error():
        train(**parse_args())


if __name__ == "__main__":
    main()
