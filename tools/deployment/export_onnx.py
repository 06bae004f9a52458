"""Export a whole segmentor, a detector's backbone with neck, or a backbone to ONNX; check it."""

import argparse

from slide_mm.engine import exit_on_user_error
from slide_mm.engine.onnx_export import FORMS, PARTS, export_onnx

EXAMPLE = """example:
  python tools/deployment/export_onnx.py configs/demo/slide-pvtv2-b0_fpn_demo.py \\
      work_dirs/demo/segmentation/iter_600.pth --out segmentor.onnx

Batch, height and width of the images may change, unless --static fixes them. Images are to be
normalised before; the file's metadata says how.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of a detector or segmentor")
    parser.add_argument(
        "checkpoint", nargs="?", help="weights of the config's model (default: random ones)"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, in .onnx")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="size of images to check with, too, and that --static fixes",
    )
    parser.add_argument("--static", action="store_true", help="fix the size, and batch 1")
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="whole",
        help="whole segmentor, or a detector's backbone with neck; or backbone (default: whole)",
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="band",
        help="how Slide Attention is written: in bands of rows, tap by tap on whole maps, as one "
        "depth-wise convolution, or as published, with two, for comparison (default: band)",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        differences = export_onnx(**vars(args))
    for size, difference in differences.items():
        print(f"{'x'.join(map(str, size)):>14}: largest relative difference {difference:.1e}")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
