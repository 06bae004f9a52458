"""Convert a checkpoint of Swin, PVT, PVTv2 or the authors' Slide-Swin for a slide_mm backbone."""

import argparse

from slide_mm.checkpoints import MIN_COVERAGE, SOURCES
from slide_mm.engine import exit_on_user_error
from slide_mm.engine.command_line import OptionAction
from slide_mm.engine.conversion import ARCHS, FORMATS, convert_checkpoint

EXAMPLE = """example:
  python tools/model_converters/convert_checkpoint.py swin_tiny_patch4_window7_224.pth \\
      slide_swin_tiny.pth --arch slide-swin/tiny
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", help="checkpoint to read")
    parser.add_argument("dst", help="checkpoint to write")
    parser.add_argument(
        "--arch", required=True, metavar="FAMILY/ARCH", help=f"one of {', '.join(ARCHS)}"
    )
    parser.add_argument(
        "--source", choices=SOURCES, help="layout of the checkpoint (default: it is recognised)"
    )
    parser.add_argument(
        "--slide-stages",
        nargs="*",
        type=int,
        metavar="STAGE",
        help="stages that slide, from 0; none for the original architecture (default: 0 1)",
    )
    parser.add_argument(
        "--model-options",
        nargs="+",
        action=OptionAction,
        metavar="KEY=VALUE",
        help="further arguments of the backbone, such as window_size=12",
    )
    parser.add_argument(
        "--format",
        dest="file_format",
        choices=FORMATS,
        help="format to write (default: safetensors if DST ends so, else pth)",
    )
    parser.add_argument(
        "--min-coverage",
        type=float,
        default=MIN_COVERAGE,
        metavar="F",
        help="share of the backbone's parameters that SRC must have (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the report, write nothing")
    return parser.parse_args()


def main() -> None:
    with exit_on_user_error():
        convert_checkpoint(**vars(parse_args()))


if __name__ == "__main__":
    main()
