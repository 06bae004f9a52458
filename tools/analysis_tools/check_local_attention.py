"""See what local attention costs and does, for a config's model and your own images.

Writes a report in HTML, its figures as PNG and all numbers as JSON.
"""

import argparse

from slide_mm.analysis.local_attention.check import check_local_attention
from slide_mm.engine import ConfigError, exit_on_user_error
from slide_mm.engine.command_line import make_parser

EXAMPLE = """example:
  python tools/analysis_tools/check_local_attention.py \\
      configs/slide_swin/mask-rcnn_slide-swin-t-p4-w7_fpn_1x_coco.py --out work_dirs/local_attention
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("config", help="config of a detector or segmentor whose backbone slides")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights of the config's model")
    parser.add_argument(
        "--images",
        nargs="+",
        default=(),
        metavar="FILE",
        help="images to look at (default: a bundled photograph, 2048 x 1024)",
    )
    parser.add_argument(
        "--points",
        nargs="+",
        default=(),
        metavar="X,Y",
        help="where to look closely, as fractions of width and height, such as 0.5,0.25 "
        "(default: where the image changes most)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=(512, 1024, 1536, 2048),
        metavar="SIDE",
        help="sides of the square images that are timed, in pixels (default: 512 1024 1536 2048)",
    )
    parser.add_argument(
        "--against",
        metavar="CONFIG",
        help="config to compare with (default: the same with slide_stages=(), the original)",
    )
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda (default: cpu)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    return parser.parse_args()


def read_point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError as error:
        raise ConfigError(f"--points has {text!r}: give X,Y, such as 0.5,0.25") from error
    return x, y


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        report = check_local_attention(
            args.config,
            args.out,
            args.checkpoint,
            args.images,
            [read_point(text) for text in args.points],
            args.sizes,
            args.against,
            args.device,
        )
        print(f"report: {report}")


if __name__ == "__main__":
    main()
