"""Whole backbones against those of other libraries."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from slide_mm import models
from slide_mm.analysis.benchmark import (
    MODES,
    list_modes,
    measure_calls,
    measure_memory,
    record_graphs,
    try_run,
)
from slide_mm.engine.markdown import format_table
from slide_mm.engine.timing import describe_environment
from slide_mm.models import Family, build_backbone

DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
_SMALL = (1, 64, 64)


Build = Callable[[tuple[int, int]], nn.Module]


def _timm(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, features_only=True, drop_path_rate=0.0, **options)


def _mmdet(name: str, **options: Any) -> nn.Module:
    from mmdet.models import backbones

    return getattr(backbones, name)(drop_path_rate=0.0, **options)


# By family, the arch to measure and what others have of it, for images of a size.
_OTHERS: dict[str, tuple[str, dict[str, Build]]] = {
    "slide-swin": (
        "tiny",
        {
            "MMDetection's swin/tiny": lambda _: _mmdet("SwinTransformer"),
            "timm's swin/tiny": lambda size: _timm("swin_tiny_patch4_window7_224", img_size=size),
        },
    ),
    "slide-pvt": (
        "tiny",
        {
            "MMDetection's pvt/tiny": lambda _: _mmdet(
                "PyramidVisionTransformer", num_layers=[2, 2, 2, 2]
            )
        },
    ),
    "slide-pvtv2": ("b2", {"timm's pvtv2/b2": lambda _: _timm("pvt_v2_b2")}),
}


def _list_backbones(family: Family) -> dict[str, Build]:
    """Those of others, the original architecture, and ours."""
    arch, others = _OTHERS.get(family.name, (next(iter(family.backbone.arch_zoo)), {}))
    if not find_spec("mmdet"):
        others = {key: build for key, build in others.items() if "MMDetection" not in key}
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
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Measure every backbone of some families at every image size.

    Args:
        families: Names in ``FAMILIES``.
        sizes: Heights and widths, in pixels.
        rounds: See :func:`slide_mm.engine.timing.measure_times`.
        device: Where to measure.
        batch: Images at a time.
        dtype: Type of autocast; float32 is without.

    Returns:
        Plain numbers, ready for JSON: the ``environment``, the ``batch``, and ``results`` by size,
        family and backbone.
    """
    environment = describe_environment(device) | {"dtype": str(dtype).removeprefix("torch.")}
    results = {
        f"{size[0]}x{size[1]}": {
            family: _measure(family, (batch, *size), rounds, device, dtype) for family in families
        }
        for size in sizes
    }
    return {"environment": environment, "batch": batch, "results": results}


def _measure(
    family: str,
    shape: tuple[int, int, int],
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    label = f"{family}, {'x'.join(map(str, shape))}"
    backbones: dict[str, Any] = {name: {} for name in FAMILIES[family]}
    models = {
        name: _runs(build(shape[1:]).to(device), shape, dtype)
        for name, build in FAMILIES[family].items()
    }
    for index, (direction, title) in enumerate(DIRECTIONS.items()):
        runs = {name: model[index] for name, model in models.items()}
        runs = {name: run for name, run in runs.items() if try_run(run, f"{name}, {title}")}
        for mode in list_modes(device):
            given = runs if mode == "ms" else record_graphs(runs)
            times = measure_calls(given, rounds, device, f"{label}, {title}{MODES[mode]}")
            for name, time in times.items():
                backbones[name].setdefault(mode, {})[direction] = time._asdict()
            del given
    del models, runs
    for name, backbone in backbones.items():
        fits = len(backbone.get("ms", {})) == len(DIRECTIONS)
        arguments = build_runs, family, name, shape, device, dtype
        backbone["mib"] = measure_memory(*arguments, device=device)._asdict() if fits else {}
    return backbones


def build_runs(
    family: str,
    name: str,
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward, and forward and backward, of a new backbone; both have run on a small image.

    Args:
        family: Name in ``FAMILIES``.
        name: Of one of its backbones.
        shape: Batch, height and width of the images.
        device: Where it runs.
        dtype: Type of autocast; float32 is without.
    """
    build = FAMILIES[family][name]
    for run in _runs(build(_SMALL[1:]).to(device), _SMALL, dtype):
        run()
    return _runs(build(shape[1:]).to(device), shape, dtype)


def _runs(
    model: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Callable[[], None], Callable[[], None]]:
    batch, *size = shape
    image = torch.randn(batch, 3, *size, device=next(model.parameters()).device)
    # Its cache of cast weights is no good to a graph.
    autocast = partial(
        torch.autocast,
        image.device.type,
        dtype,
        enabled=dtype != torch.float32,
        cache_enabled=False,
    )

    @torch.no_grad()
    def forward() -> None:
        model.train(False)  # MMDetection's own return no model here.
        with autocast():
            model(image)

    def both() -> None:
        model.train(True)
        model.zero_grad()
        with autocast():
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
        for mode in _modes(families):
            lines = [
                [name, *(cell for x in DIRECTIONS for cell in _cells(backbones, name, mode, x))]
                for backbones in families.values()
                for name in backbones
            ]
            title = f"{size}, batch {report['batch']}{MODES[mode]}, ratios to the first of each"
            parts.append(f"{title} family\n\n{format_table(header, lines)}")
    return "\n\n".join(parts)


def _modes(families: Mapping[str, Any]) -> list[str]:
    backbones = [x for family in families.values() for x in family.values()]
    return [mode for mode in MODES if mode == "ms" or any(mode in x for x in backbones)]


def _cells(backbones: Mapping[str, Any], name: str, mode: str, direction: str) -> list[str]:
    times = {x: backbone.get(mode, {}).get(direction) for x, backbone in backbones.items()}
    time, first = times[name], next(iter(times.values()))
    if time is None:
        return ["-"] * 3
    digits = 0 if time["median"] >= 20 else 2
    median, low, high = (f"{time[x]:.{digits}f}" for x in ("median", "low", "high"))
    mib = backbones[name]["mib"].get(direction)
    return [
        f"{median} ({low} to {high}, n = {time['rounds']})",
        f"{time['median'] / first['median']:.2f}" if first else "-",
        "-" if mib is None else f"{mib:.0f}",
    ]


def plot_backbones(report: Mapping[str, Any], out: str | Path) -> None:
    """Draw times and memory of a report of :func:`benchmark_backbones`.

    Args:
        report: The report.
        out: Picture to write.
    """
    sizes = report["results"]
    modes = [mode for mode in MODES if any(mode in _modes(x) for x in sizes.values())]
    labels = {mode: f"ms{MODES[mode]}" for mode in modes} | {"mib": "MiB at the peak"}
    figure = Figure(figsize=(6.5 * len(labels), 4 * len(sizes)), layout="constrained")
    axes = figure.subplots(len(sizes), len(labels), squeeze=False)
    for row, (size, families) in zip(axes, sizes.items(), strict=True):
        backbones = {name: x for family in families.values() for name, x in family.items()}
        for cell, (quantity, label) in zip(row, labels.items(), strict=True):
            for number, (direction, title) in enumerate(DIRECTIONS.items()):
                values = [x.get(quantity, {}).get(direction) or 0 for x in backbones.values()]
                values = [x["median"] if isinstance(x, dict) else x for x in values]
                places = [index + 0.38 * (number - 0.5) for index in range(len(values))]
                cell.barh(places, values, height=0.36, label=title)
            cell.set_yticks(range(len(backbones)), backbones)
            cell.invert_yaxis()
            cell.set(title=f"{size}, batch {report['batch']}", xlabel=label)
            cell.grid(axis="x", alpha=0.3)
        row[0].legend()
    figure.savefig(out, dpi=110)
