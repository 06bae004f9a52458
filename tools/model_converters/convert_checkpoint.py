"""Convert a checkpoint that others have of a family for a slide_mm backbone."""

import argparse

import torch

from slide_mm.checkpoints import (
    FORMATS,
    MIN_COVERAGE,
    SOURCES,
    convert_checkpoint,
    write_checkpoint,
)
from slide_mm.engine import ConfigError, exit_on_user_error
from slide_mm.engine.command_line import OptionAction, make_parser
from slide_mm.models import build_backbone, list_archs

EXAMPLE = """example:
  python tools/model_converters/convert_checkpoint.py swin_tiny_patch4_window7_224.pth \\
      slide_swin_tiny.pth --arch slide-swin/tiny
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("src", help="checkpoint to read")
    parser.add_argument("dst", help="checkpoint to write")
    parser.add_argument(
        "--arch", required=True, metavar="FAMILY/ARCH", help=f"one of {', '.join(list_archs())}"
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


def build_on_meta(args: argparse.Namespace) -> torch.nn.Module:
    """Build the backbone without memory for its weights."""
    options = dict(args.model_options or {})
    if args.slide_stages is not None:
        options["slide_stages"] = args.slide_stages
    try:
        with torch.device("meta"):
            return build_backbone(args.arch, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--arch {args.arch} cannot be built: {error}") from error


def convert(args: argparse.Namespace) -> None:
    if not 0 <= args.min_coverage <= 1:
        raise ConfigError(f"--min-coverage is {args.min_coverage}: give a fraction from 0 to 1")
    backbone = build_on_meta(args)
    conversion = convert_checkpoint(args.src, backbone, source=args.source, keep_classifier=True)
    print(conversion.report)
    conversion.report.require(args.min_coverage)
    if not args.dry_run:
        meta = {"arch": args.arch, "converted_from": conversion.report.source}
        write_checkpoint(conversion.weights, args.dst, meta, args.file_format)
        print(f"written to {args.dst}")


if __name__ == "__main__":
    with exit_on_user_error():
        convert(parse_args())
