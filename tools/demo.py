"""Train, test and draw a small detector and a small segmentor on the bundled scenes."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from torchvision.io import ImageReadMode, read_image
from torchvision.utils import save_image

from slide_mm.analysis import plot_runs, read_scalars
from slide_mm.datasets import make_demo_scenes

EXAMPLE = """example:
  python tools/demo.py
  python tools/demo.py --baseline    the same with PVTv2's own attention in all stages
"""
ROOT = Path(__file__).resolve().parents[1]
SCENES = Path("data/demo_scenes")
DETECTOR = ROOT / "configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py"
SEGMENTOR = ROOT / "configs/demo/slide-pvtv2-b0_fpn_demo.py"
METRICS = {
    "coco/bbox_mAP": "box AP",
    "coco/bbox_mAP_50": "box AP50",
    "coco/segm_mAP": "mask AP",
    "coco/segm_mAP_50": "mask AP50",
    "mIoU": "mIoU",
}
NUM_PICTURES = 8


class DemoError(Exception):
    """A step that failed; the message says where to look."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--baseline", action="store_true", help="no stage slides: the original PVTv2-B0"
    )
    baseline = parser.parse_args().baseline
    work_dir = Path("work_dirs/demo-baseline" if baseline else "work_dirs/demo")
    try:
        run_demo(work_dir, ["model.backbone.slide_stages=()"] if baseline else [])
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def run_demo(work_dir: Path, options: list[str]) -> None:
    """Make the scenes, train and test both models, and show what came out."""
    print(f"scenes: {SCENES}", flush=True)
    make_demo_scenes(SCENES)
    # Nothing of an earlier run may pass for a result of this one.
    shutil.rmtree(work_dir, ignore_errors=True)
    detection, segmentation = work_dir / "detection", work_dir / "segmentation"
    began = time.monotonic()
    checkpoint = train_and_test("detector", DETECTOR, detection, options)
    between = time.monotonic()
    train_and_test("segmentor", SEGMENTOR, segmentation, [*options, f"load_from={checkpoint}"])
    seconds = {"detector": between - began, "segmentor": time.monotonic() - between}

    pictures = {
        "detection": sorted(detection.glob("pictures/*.*")),
        "segmentation": sorted(segmentation.glob("pictures/vis_data/vis_image/*.*")),
    }
    for task, paths in pictures.items():
        images = [read_image(str(x), ImageReadMode.RGB) / 255 for x in paths[:NUM_PICTURES]]
        save_image(images, work_dir / f"{task}.png", nrow=2, padding=0)
        scalars = percent_to_fraction(read_scalars(work_dir / task))
        names = ["loss", *(name for name in METRICS if name in scalars)]
        plot_runs({task: scalars}, work_dir / f"{task}_curves.png", names, METRICS)
    report(work_dir, seconds)


def train_and_test(name: str, config: Path, work_dir: Path, options: list[str]) -> Path:
    """Train a model, test its last checkpoint with pictures, and return the checkpoint."""
    cfg_options = ["--cfg-options", *options] if options else []
    run_tool(f"training the {name}", "train.py", config, "--work-dir", work_dir, *cfg_options)
    checkpoint = Path((work_dir / "last_checkpoint").read_text().strip())
    test_dir, pictures = work_dir / "test", (work_dir / "pictures").resolve()
    arguments = (config, checkpoint, "--work-dir", test_dir, "--show-dir", pictures)
    run_tool(f"testing the {name}", "test.py", *arguments, *cfg_options)
    return checkpoint


def run_tool(title: str, tool: str, *arguments: str | Path) -> None:
    print(f"\n==== {title}", flush=True)
    command = [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]
    if subprocess.run(command).returncode != 0:
        raise DemoError(f"{title} failed, see above; the command was: {' '.join(command)}")


def percent_to_fraction(
    scalars: dict[str, list[tuple[int, float]]],
) -> dict[str, list[tuple[int, float]]]:
    """MMSegmentation counts mIoU in percent, COCO its AP from 0 to 1: give both as fractions."""
    if "mIoU" in scalars:
        scalars["mIoU"] = [(step, value / 100) for step, value in scalars["mIoU"]]
    return scalars


def test_metrics(work_dir: Path) -> dict[str, float]:
    """The metrics that tools/test.py wrote, as fractions."""
    path = max(work_dir.glob("test/*/*.json"))
    metrics = json.loads(path.read_text())
    return {
        label: metrics[name] / (100 if name == "mIoU" else 1)
        for name, label in METRICS.items()
        if name in metrics
    }


def report(work_dir: Path, seconds: dict[str, float]) -> None:
    """Print the table, and where the pictures are."""
    print("\n==== results on held-out scenes")
    for task in ("detection", "segmentation"):
        for label, value in test_metrics(work_dir / task).items():
            print(f"{label:>22}  {value:.3f}")
    for name, duration in seconds.items():
        print(f"{name + ', minutes':>22}  {duration / 60:.1f}")
    print("\npredictions (right of each pair) beside the truth (left), and curves:")
    for path in sorted(work_dir.glob("*.png")):
        print(f"  {path}")
    print(f"a picture for each scene: {work_dir}/*/pictures")


if __name__ == "__main__":
    sys.exit(main())
