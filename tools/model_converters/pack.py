"""Pack a trained model into a folder that other machines can use: weights, config, card."""

import argparse

from slide_mm.engine import ConfigError, exit_on_user_error
from slide_mm.engine.command_line import OptionAction, make_parser
from slide_mm.packing import pack_backbone, pack_model

EXAMPLE = """example:
  python tools/model_converters/pack.py work_dirs/demo/detection/iter_1100.pth --out digits
  python tools/infer.py digits data/demo_scenes/images/validation --out predictions

  python tools/model_converters/pack.py work_dirs/demo/detection/iter_1100.pth --out backbone \\
      --backbone
  python -c "import slide_mm, timm; timm.create_model('local-dir:backbone', pretrained=True)"
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("checkpoint", help="weights that a training has left")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="folder to write, new or empty"
    )
    parser.add_argument(
        "--config", help="config of the model (default: the checkpoint's own, or the one beside it)"
    )
    parser.add_argument(
        "--license",
        dest="license_name",
        default="unknown",
        metavar="NAME",
        help="licence of the weights, such as apache-2.0 (default: unknown)",
    )
    parser.add_argument(
        "--backbone",
        nargs="?",
        const="",
        metavar="FAMILY/ARCH",
        help="the backbone alone, and its classifier if there is one, in timm's format; with a "
        "name such as slide-swin/tiny for weights without a config",
    )
    parser.add_argument(
        "--model-options",
        nargs="+",
        action=OptionAction,
        metavar="KEY=VALUE",
        help="with FAMILY/ARCH: further arguments of the backbone, such as window_size=12",
    )
    return parser.parse_args()


def main() -> None:
    with exit_on_user_error():
        args = parse_args()
        common = (args.checkpoint, args.out, args.config, args.license_name)
        if args.model_options and not args.backbone:
            raise ConfigError("--model-options are of --backbone FAMILY/ARCH: name it")
        if args.backbone is None:
            notes = pack_model(*common)
        else:
            notes = pack_backbone(*common, args.backbone or None, args.model_options)
    for note in notes:
        print(f"look at it before you hand it on: {note}")
    if args.license_name == "unknown":
        print("the card says that the licence is unknown: name it with --license")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
