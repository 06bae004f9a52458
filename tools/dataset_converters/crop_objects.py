"""Cut the annotated objects out of detection data, one folder a class, to pretrain a classifier."""

import argparse
import sys

from slide_mm.datasets import crop_objects

EXAMPLE = """example:
  python tools/dataset_converters/make_demo_scenes.py data/more_scenes --num-training 2000 --seed 1
  python tools/dataset_converters/crop_objects.py \\
      data/more_scenes/annotations/instances_training.json data/more_scenes/images/training \\
      data/demo_digits/training
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ann_file", help="annotations in COCO's format")
    parser.add_argument("image_dir", help="folder of the images")
    parser.add_argument("out", help="folder to make, which must not exist")
    args = parser.parse_args()
    try:
        number = crop_objects(**vars(args))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {number} crops")
    return 0


if __name__ == "__main__":
    sys.exit(main())
