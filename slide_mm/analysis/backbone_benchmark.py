"""Whole backbones against those of other libraries; needs MMDetection."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from mmdet.models.backbones import PyramidVisionTransformer, SwinTransformer
from torch import Tensor, nn

from slide_mm import models
from slide_mm.analysis.benchmark import measure_memory
from slide_mm.engine.markdown import format_table
from slide_mm.engine.timing import describe_environment, measure_times
from slide_mm.models import Family, build_backbone

DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
_SMALL = (64, 64)


Build = Callable[[tuple[int, int]], nn.Module]


def _timm(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, features_only=True, drop_path_rate=0.0, **options)


# By family, the arch to measure and what others have of it, for images of a size.
_OTHERS: dict[str, tuple[str, dict[str, Build]]] = {
    "slide-swin": (
        "tiny",
        {
            "MMDetection's swin/tiny": lambda _: SwinTransformer(drop_path_rate=0.0),
            "timm's swin/tiny": lambda size: _timm("swin_tiny_patch4_window7_224", img_size=size),
        },
    ),
    "slide-pvt": (
        "tiny",
        {
            "MMDetection's pvt/tiny": lambda _: PyramidVisionTransformer(
                num_layers=[2, 2, 2, 2], drop_path_rate=0.0
            )
        },
    ),
    "slide-pvtv2": ("b2", {"timm's pvtv2/b2": lambda _: _timm("pvt_v2_b2")}),
}


def _list_backbones(family: Family) -> dict[str, Build]:
    """Those of others, the original architecture, and ours."""
    arch, others = _OTHERS.get(family.name, (next(iter(family.backbone.arch_zoo)), {}))
    name = f"{family.name}/{arch}"

    def ours(**options: Any) -> Build:
        return lambda _: build_backbone(name, drop_path_rate=0.0, **options)

    return {
        **others,
        f"{name}, slide_stages=()": ours(slide_stages=()),
        name: ours(),
        f"{name}, with_cp=True": ours(with_cp=True),
    }


# The first of a family is what the others are compared with.
FAMILIES = {
    family.name.removeprefix("slide-"): _list_backbones(family)
    for family in models.FAMILIES.values()
}


def benchmark_backbones(
    families: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    rounds: int,
    device: torch.device,
) -> dict[str, Any]:
    """Measure every backbone of some families at every image size, batch 1, float32.

    Args:
        families: Names in ``FAMILIES``.
        sizes: Heights and widths, in pixels.
        rounds: See :func:`slide_mm.analysis.benchmark.measure_times`.
        device: Where to measure.

    Returns:
        Plain numbers, ready for JSON: the ``environment``, and ``results`` by size, family and
        backbone.
    """
    environment = describe_environment(device)
    results = {
        f"{size[0]}x{size[1]}": {
            family: _measure(family, size, rounds, device) for family in families
        }
        for size in sizes
    }
    return {"environment": environment, "results": results}


def _measure(
    family: str, size: tuple[int, int], rounds: int, device: torch.device
) -> dict[str, Any]:
    backbones = FAMILIES[family]
    runs = {name: _runs(build(size).to(device), size) for name, build in backbones.items()}
    label = f"{family}, {size[0]}x{size[1]}"
    times = [
        measure_times(
            {name: pair[i] for name, pair in runs.items()}, rounds, device, f"{label}, {x}"
        )
        for i, x in enumerate(DIRECTIONS.values())
    ]
    del runs
    return {
        name: {
            "ms": {x: times[i][name]._asdict() for i, x in enumerate(DIRECTIONS)},
            "mib": measure_memory(build_runs, family, name, size, device, device=device)._asdict(),
        }
        for name in backbones
    }


def build_runs(
    family: str, name: str, size: tuple[int, int], device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward, and forward and backward, of a new backbone; both have run on a small image."""
    for run in _runs(FAMILIES[family][name](_SMALL).to(device), _SMALL):
        run()
    return _runs(FAMILIES[family][name](size).to(device), size)


def _runs(model: nn.Module, size: tuple[int, int]) -> tuple[Callable[[], None], Callable[[], None]]:
    image = torch.randn(1, 3, *size, device=next(model.parameters()).device)

    @torch.no_grad()
    def forward() -> None:
        model.train(False)  # MMDetection's own return no model here.
        model(image)

    def both() -> None:
        model.train(True)
        model.zero_grad()
        features: Sequence[Tensor] = model(image)
        torch.autograd.backward(features, [torch.ones_like(x) for x in features])

    return forward, both


def format_backbones(report: Mapping[str, Any]) -> str:
    """Show a report of :func:`benchmark_backbones` as tables in Markdown."""
    header = [""]
    for title in DIRECTIONS.values():
        header += [f"{title}, ms (quartiles)", "ratio", "MiB"]
    parts = []
    for size, families in report["results"].items():
        lines = [
            [name, *(cell for x in DIRECTIONS for cell in _cells(backbones, name, x))]
            for backbones in families.values()
            for name in backbones
        ]
        parts.append(f"{size}, ratios to the first of each family\n\n{format_table(header, lines)}")
    return "\n\n".join(parts)


def _cells(backbones: Mapping[str, Any], name: str, direction: str) -> list[str]:
    time = backbones[name]["ms"][direction]
    reference = next(iter(backbones.values()))["ms"][direction]
    return [
        f"{time['median']:.0f} ({time['low']:.0f} to {time['high']:.0f}, n = {time['rounds']})",
        f"{time['median'] / reference['median']:.2f}",
        f"{backbones[name]['mib'][direction]:.0f}",
    ]


def plot_backbones(report: Mapping[str, Any], out: str | Path) -> None:
    """Draw times and memory of a report of :func:`benchmark_backbones`.

    Args:
        report: The report.
        out: Picture to write.
    """
    sizes = report["results"]
    figure = Figure(figsize=(13, 4 * len(sizes)), layout="constrained")
    for row, (size, families) in zip(
        figure.subplots(len(sizes), 2, squeeze=False), sizes.items(), strict=True
    ):
        backbones = {name: x for family in families.values() for name, x in family.items()}
        for axes, quantity, label in zip(
            row, ("ms", "mib"), ("ms", "MiB at the peak"), strict=True
        ):
            for number, (direction, title) in enumerate(DIRECTIONS.items()):
                values = [x[quantity][direction] for x in backbones.values()]
                values = [x["median"] if isinstance(x, dict) else x for x in values]
                places = [index + 0.38 * (number - 0.5) for index in range(len(values))]
                axes.barh(places, values, height=0.36, label=title)
            axes.set_yticks(range(len(backbones)), backbones)
            axes.invert_yaxis()
            axes.set(title=f"{size}, batch 1", xlabel=label)
            axes.grid(axis="x", alpha=0.3)
        row[0].legend()
    figure.savefig(out, dpi=110)
