"""Export a segmentor, a detector's backbone with neck, or a backbone out of PyTorch; check it."""

import argparse

from slide_mm.engine import exit_on_user_error
from slide_mm.engine.command_line import make_parser
from slide_mm.export import export_model
from slide_mm.export.program import PARTS

EXAMPLE = """example:
  python tools/deployment/export.py configs/demo/slide-pvtv2-b0_fpn_demo.py \\
      work_dirs/demo/segmentation/iter_600.pth --out segmentor.onnx

Batch, height and width of the images may change, unless --static fixes them. Images are to be
normalised before; the file's metadata says how.
"""


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("config", help="config of a detector or segmentor, or a folder of pack.py")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="weights of the config's model (default: the folder's, or random ones)",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="file to write: .onnx for onnxruntime and OpenVINO, or .pt2, compiled for this CPU by "
        "AOTInductor",
    )
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
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        differences = export_model(**vars(args))
    for runtime, by_size in differences.items():
        for size, difference in by_size.items():
            size = "x".join(map(str, size))
            print(f"{runtime:>12} {size:>14}: largest relative difference {difference:.1e}")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
