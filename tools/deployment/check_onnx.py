"""Compare an exported ONNX file with PyTorch, in onnxruntime and OpenVINO: numbers and latency."""

import argparse

from slide_mm.engine import exit_on_user_error
from slide_mm.engine.deployment import check_onnx

EXAMPLE = """example:
  python tools/deployment/check_onnx.py segmentor.onnx configs/demo/slide-pvtv2-b0_fpn_demo.py
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="ONNX file that export_onnx.py has written")
    parser.add_argument("config", help="config file that it was made from")
    parser.add_argument(
        "--checkpoint", help="weights that it was made from (default: those that the file names)"
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=(800, 1280),
        metavar=("H", "W"),
        help="size of the image for the latencies (default: 800 1280)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each runs (default: 5)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with exit_on_user_error():
        report = check_onnx(**vars(args))
    print("largest difference over the largest value")
    for name, differences in report["differences"].items():
        for size, difference in differences:
            print(f"  {name:>12}  {'x'.join(map(str, size)):>12}  {difference:.1e}")
    height, width = report["size"]
    print(f"latency at {height} x {width}, batch 1, {report['threads']} threads, median")
    for name, milliseconds in report["ms"].items():
        ratio = milliseconds / report["ms"]["pytorch"]
        print(f"  {name:>12}  {milliseconds:8.1f} ms  {ratio:.2f}x PyTorch")


if __name__ == "__main__":
    main()
