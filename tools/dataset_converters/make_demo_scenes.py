"""Make the bundled demo's scenes, annotated in the layouts of COCO and ADE20K."""

import argparse
import sys

from slide_mm.datasets import make_demo_scenes

EXAMPLE = """example:
  python tools/dataset_converters/make_demo_scenes.py
  python tools/dataset_converters/make_demo_scenes.py data/more_scenes --num-training 2000 --seed 1
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "root",
        nargs="?",
        default="data/demo_scenes",
        help="folder to make (default: data/demo_scenes, where the demo's configs look)",
    )
    parser.add_argument("--num-training", type=int, default=400, help="default: 400")
    parser.add_argument("--num-validation", type=int, default=100, help="default: 100")
    parser.add_argument("--image-size", type=int, default=256, help="side, default: 256 pixels")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    try:
        made = make_demo_scenes(**vars(args))
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.root}: {'made' if made else 'already complete, kept'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
