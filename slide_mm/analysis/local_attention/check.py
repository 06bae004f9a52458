"""The whole report: what local attention does for a config's model and one's own images."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from slide_mm.analysis.local_attention.attention import check_attention
from slide_mm.analysis.local_attention.cost import check_cost
from slide_mm.analysis.local_attention.deformed_shifts import check_deformed_shifts
from slide_mm.analysis.local_attention.deployment import check_deployment
from slide_mm.analysis.local_attention.equivariance import check_equivariance
from slide_mm.analysis.local_attention.photographs import read_photographs
from slide_mm.analysis.local_attention.receptive_field import check_receptive_field
from slide_mm.analysis.local_attention.report import render_html
from slide_mm.analysis.local_attention.section import Section
from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine.config import load_config, packed_weights, require_keys
from slide_mm.engine.outputs import check_device, make_folder
from slide_mm.engine.preflight import check_model, silence_log
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.timing import describe_environment
from slide_mm.engine.weights import load_weights
from slide_mm.models.backbone import HierarchicalBackbone

_MIN_SIZE = 32


def check_local_attention(
    config: str,
    out: str | Path,
    checkpoint: str | None = None,
    images: Sequence[str | Path] = (),
    points: Sequence[tuple[float, float]] = (),
    sizes: Sequence[int] = (512, 1024, 1536, 2048),
    against: str | None = None,
    device: str = "cpu",
) -> Path:
    """Measure and draw what local attention costs and does, in one report.

    Args:
        config: Config of a detector or segmentor whose backbone slides, or a packed folder.
        out: Folder to write: ``report.html``, ``report.json`` and a PNG for each figure.
        checkpoint: Weights of the config's model. Default: the folder's, or those that the config
            starts training from.
        images: Image files. Default: a photograph of 2048 x 1024 made of scikit-learn's two.
        points: Where to look closely in each image, as fractions of its width and height.
            Default: where the image changes most.
        sizes: Sides of the square images whose cost is measured, in pixels, at least two.
        against: Config of the model to compare with, of any backbone with strides of 4, 8, 16 and
            32, with the weights it starts training from if they are a local file. Default: the
            same config with ``slide_stages=()``, the original architecture.
        device: Where to compute.

    Returns:
        The report's path.

    Raises:
        ConfigError: If a config, an image or an option is wrong; nothing has been measured then.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    sizes = _check_sizes(sizes)
    place = check_device(device)
    checkpoint = checkpoint or packed_weights(config)
    model, backbones = _load_models(config, checkpoint, against, place)
    photographs = read_photographs(images, points, model)
    out = make_folder(out)
    sliding = backbones["sliding"]
    environment = describe_environment(place)

    sections: dict[str, Section] = {}
    steps: dict[str, Callable[[], Section]] = {
        "cost": lambda: check_cost(backbones, sizes, place),
        "receptive field": lambda: check_receptive_field(backbones, photographs),
        "equivariance": lambda: check_equivariance(
            backbones, photographs, sections["receptive field"].numbers
        ),
        "attention": lambda: check_attention(sliding, photographs),
        "deformed shifts": lambda: check_deformed_shifts(sliding),
        "deployed form": lambda: check_deployment(sliding, sizes, place),
    }
    for number, (name, step) in enumerate(steps.items(), start=1):
        print(f"[{number}/{len(steps)}] {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        sections[name] = step()
        print("\n".join(f"  {finding}" for finding in sections[name].findings), flush=True)
        print(f"  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    facts = {
        "config": config,
        "weights": checkpoint or "those the config starts training from",
        "compared with": against or f"{config}, slide_stages=()",
        "images": ", ".join(map(str, photographs)),
        **{name: str(value) for name, value in environment.items()},
    }
    return _write_report(out, facts, list(sections.values()))


def _check_sizes(sizes: Sequence[int]) -> list[int]:
    sizes = sorted(set(sizes))
    if len(sizes) < 2 or sizes[0] < _MIN_SIZE:
        given = " ".join(map(str, sizes))
        raise ConfigError(
            f"--sizes is {given}: give two or more sides in pixels, {_MIN_SIZE} at least"
        )
    return sizes


def _load_models(
    config: str, checkpoint: str | None, against: str | None, device: torch.device
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The config's model, and by name its backbone and the one to compare with."""
    torch.manual_seed(0)
    cfg = load_config(config)
    require_keys(cfg, "this report", "model")
    model = check_model(cfg, pretrained=checkpoint is None)
    sliding = getattr(model, "backbone", None)
    if not isinstance(sliding, HierarchicalBackbone):
        raise ConfigError(
            f"the backbone of {cfg.filename} is a {type(sliding).__name__}: name the config of a "
            "detector or segmentor on a backbone of slide_mm"
        )
    if not sliding.slide_stages:
        raise ConfigError(f"no stage of the backbone of {config} slides: name a config that does")
    if checkpoint is not None:
        load_weights(cfg, model, checkpoint)
    if against is None:
        cfg.model.backbone.update(slide_stages=(), init_cfg=None)
        backbones = {"sliding": sliding, "original": check_model(cfg, pretrained=False).backbone}
    else:
        backbones = {"sliding": sliding, "against": _load_against(against)}
    for backbone in backbones.values():
        # MMDetection's backbones don't return themselves from eval.
        backbone.to(device).requires_grad_(False).eval()
    return model, backbones


def _load_against(config: str) -> nn.Module:
    """The backbone of any config, with the weights of a local file or else random ones."""
    cfg = load_config(config)
    require_keys(cfg, "this report", "model")
    options = cfg.model.get("backbone")
    if not isinstance(options, dict):
        raise ConfigError(
            f"the model of {config} has no backbone: name the config of a detector or segmentor"
        )
    if "://" in (options.get("init_cfg") or {}).get("checkpoint", ""):
        options.init_cfg = None  # Nothing is downloaded.
    backbone = check_model(cfg, pretrained=True).backbone
    if not options.get("init_cfg"):
        with silence_log():
            backbone.init_weights()
    backbone.eval()
    with torch.inference_mode():
        sides = [x.shape[-1] for x in backbone(torch.zeros(1, 3, 64, 64))]
    if sides != [16, 8, 4, 2][: len(sides)]:
        strides = ", ".join(f"{64 / side:g}" for side in sides)
        raise ConfigError(
            f"the backbone of {config} has outputs of strides {strides}: give one of 4, 8, 16 and "
            "32, such as by model.backbone.out_indices"
        )
    return backbone


def _write_report(out: Path, facts: dict[str, str], sections: Sequence[Section]) -> Path:
    """Write pictures and numbers, and last the report."""
    pictures = {x.name: x.to_png() for section in sections for x in section.pictures}
    numbers = {"facts": facts, **{section.name: section.numbers for section in sections}}
    title = f"Local attention of {Path(facts['config']).stem}"
    files = {
        **{f"{name}.png": png for name, png in pictures.items()},
        "report.json": json.dumps(numbers, indent=1, allow_nan=False).encode(),
        "report.html": render_html(title, facts, sections, pictures).encode(),
    }
    for name, content in files.items():
        with write_atomically(out / name) as file:
            file.write_bytes(content)
    return out / "report.html"
