"""Train detectors from scratch on a folder of images, several seeds each, and compare them."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from slide_mm.analysis import read_scalars
from slide_mm.engine.command_line import make_parser
from slide_mm.engine.markdown import format_table

EXAMPLE = """example, from the root of the repository:
  PYTHONPATH=. python projects/from_scratch/study.py data/nuclei --out work_dirs/from_scratch
"""
ROOT = Path(__file__).resolve().parents[2]
BASES = {
    "pvtv2-b0": (ROOT / "configs/demo/mask-rcnn_slide-pvtv2-b0_fpn_demo.py", 5),
    "swin-t": (Path(__file__).parent / "configs/mask-rcnn_slide-swin-t_fpn_small.py", 2),
}
METRICS = {"box AP": "coco/bbox_mAP", "mask AP": "coco/segm_mAP"}


class Variant(NamedTuple):
    """A detector: its base among ``BASES``, and what changes in its config."""

    base: str
    options: Sequence[str] = ()


ORIGINAL = ("model.backbone.slide_stages=()",)
KERNELS = "optim_wrapper.paramwise_cfg.custom_keys.deformed_kernel"
VARIANTS = {
    "Slide-PVTv2-B0": Variant("pvtv2-b0"),
    "PVTv2-B0": Variant("pvtv2-b0", ORIGINAL),
    "Slide-Swin-T": Variant("swin-t"),
    "Swin-T": Variant("swin-t", ORIGINAL),
    "kernels start at zero": Variant(
        "pvtv2-b0", ["model.backbone.init_cfg.type=ZeroDeformedKernels"]
    ),
    "Slide-Swin-T, kernels start at zero": Variant(
        "swin-t", ["model.backbone.init_cfg.type=ZeroDeformedKernels"]
    ),
    "MLPs start as convolutions": Variant(
        "pvtv2-b0", ["model.backbone.init_cfg.type=ConvolutionalMlps"]
    ),
    "PVTv2-B0, MLPs start as convolutions": Variant(
        "pvtv2-b0", [*ORIGINAL, "model.backbone.init_cfg.type=ConvolutionalMlps"]
    ),
    "kernels learn at 0.1 of the rate": Variant("pvtv2-b0", [f"{KERNELS}.lr_mult=0.1"]),
    "kernels don't decay": Variant("pvtv2-b0", [f"{KERNELS}.decay_mult=0.0"]),
    "warm-up of 200 iterations": Variant(
        "pvtv2-b0", ["param_scheduler.0.end=200", "param_scheduler.1.begin=200"]
    ),
    "borders are repeated": Variant("pvtv2-b0", ["model.backbone.type=SlidePVTv2RepeatedBorders"]),
}


def main() -> int:
    parser = make_parser(__doc__, EXAMPLE)
    parser.add_argument("data", type=Path, help="folder that tools/misc/new_config.py takes")
    parser.add_argument("--out", type=Path, required=True, help="folder for configs and trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    args = parser.parse_args()
    for base in {VARIANTS[name].base for name in args.variants}:
        write_config(base, args.data, args.out)
    runs = [(name, seed) for seed in args.seeds for name in args.variants]
    with ThreadPoolExecutor(args.jobs) as pool:
        codes = list(pool.map(lambda run: train(*run, args.out), runs))
    print(summarise(args.variants, args.seeds, args.out))
    return max(codes)


def write_config(base: str, data: Path, out: Path) -> None:
    """Write the config of a base for a folder, unless it stands."""
    config, epochs = BASES[base]
    if not (out / f"{base}.py").exists():
        options = ["--data", str(data), "--epochs", str(epochs), "--out", str(out / f"{base}.py")]
        run_tool("misc/new_config.py", [str(config), *options])


def train(name: str, seed: int, out: Path) -> int:
    """Train a variant, or go on, and validate it once at the end; returns the exit code."""
    base, options = VARIANTS[name]
    config = out / f"{base}.py"
    end = Config.fromfile(config).train_cfg.max_iters
    folder = run_dir(name, seed, out)
    options = [
        "custom_imports.imports=['slide_mm','projects.from_scratch']",
        f"randomness.seed={seed}",
        f"train_cfg.val_interval={end}",
        *options,
    ]
    arguments = [str(config), "--work-dir", str(folder), "--resume", "--cfg-options", *options]
    code = (
        0 if read_metrics(folder) else run_tool("train.py", arguments, folder.with_suffix(".log"))
    )
    print(f"{name}, seed {seed}: {read_metrics(folder) or f'failed, see {folder}.log'}", flush=True)
    return code


def run_tool(tool: str, arguments: Sequence[str], log: Path | None = None) -> int:
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if log is None:
        return subprocess.run(command, env=environment, check=True).returncode
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode


def run_dir(name: str, seed: int, out: Path) -> Path:
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return out / "-".join([*words, str(seed)])


def read_metrics(folder: Path) -> dict[str, float]:
    """The metrics of a training that came to its end, or nothing."""
    if not list(folder.glob("*/vis_data/scalars.json")):
        return {}
    scalars = read_scalars(folder)
    return {label: scalars[key][-1][1] for label, key in METRICS.items() if key in scalars}


def summarise(names: Iterable[str], seeds: Sequence[int], out: Path) -> str:
    """A table of means and ranges over seeds."""
    lines = []
    for name in names:
        found = [read_metrics(run_dir(name, seed, out)) for seed in seeds]
        found = [metrics for metrics in found if metrics]
        cells = []
        for label in METRICS:
            values = [metrics[label] for metrics in found]
            cells.append(
                f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
                if values
                else "-"
            )
        lines.append([name, *cells, str(len(found))])
    return format_table(["", *METRICS, "seeds"], lines)


if __name__ == "__main__":
    sys.exit(main())
