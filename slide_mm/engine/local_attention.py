"""Seeing what local attention does for a config's model and one's own images."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from slide_mm.analysis.benchmark import describe_environment
from slide_mm.analysis.local_attention import (
    Photograph,
    Section,
    check_attention,
    check_cost,
    check_deformed_shifts,
    check_deployment,
    check_equivariance,
    check_receptive_field,
    render_html,
    salient_points,
)
from slide_mm.datasets import bundled_photograph
from slide_mm.engine.config import load_config, require_keys
from slide_mm.engine.preflight import check_model, image_channels, silence_log
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.runtimes import is_installed
from slide_mm.engine.weights import load_weights
from slide_mm.models.backbone import HierarchicalBackbone

NUM_POINTS = 3
# Smaller images leave nothing of the last stage but its border; larger ones are shrunk.
MIN_SIDE, MAX_SIDE = 160, 2048
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
        config: Config of a detector or segmentor whose backbone slides.
        out: Folder to write: ``report.html``, ``report.json`` and a PNG for each figure.
        checkpoint: Weights of the config's model. Default: those it starts training from.
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
    model, backbones = _load_models(config, checkpoint, against, place)
    photographs = _read_photographs(images, points, model)
    out = _make_folder(Path(out))
    sliding = next(iter(backbones.values()))
    environment = describe_environment(place)

    sections: dict[str, Section] = {}

    def reaches() -> dict[str, list[float | None]]:
        numbers = sections["receptive field"].numbers
        return {name: [stage["reach"] for stage in stages] for name, stages in numbers.items()}

    steps: dict[str, Callable[[], Section]] = {
        "cost": lambda: check_cost(backbones, sizes, place),
        "receptive field": lambda: check_receptive_field(backbones, photographs),
        "equivariance": lambda: check_equivariance(backbones, photographs, reaches()),
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
        "images": ", ".join(f"{x.name} ({_size(x)})" for x in photographs),
        **{name: str(value) for name, value in environment.items()},
    }
    return _write_report(out, facts, list(sections.values()))


def check_device(device: str) -> torch.device:
    """Refuse a device that isn't there.

    Raises:
        ConfigError: If PyTorch can't use it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"--device {device} cannot be used: {first_line}") from error
    return torch.device(device)


def _check_sizes(sizes: Sequence[int]) -> list[int]:
    sizes = sorted(set(sizes))
    if len(sizes) < 2 or sizes[0] < _MIN_SIZE:
        given = " ".join(map(str, sizes))
        raise ConfigError(
            f"--sizes is {given}: give two or more sides in pixels, {_MIN_SIZE} at least"
        )
    return sizes


def _make_folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise ConfigError(f"--out {out} cannot be written: give another folder")
    return out


def _load_models(
    config: str, checkpoint: str | None, against: str | None, device: torch.device
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The config's model, and by name its backbone and the one to compare with."""
    torch.manual_seed(0)
    cfg = load_config(config)
    require_keys(cfg, "this report", "model")
    model = check_model(cfg, pretrained=checkpoint is None)
    sliding = _get_backbone(cfg, model)
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


def _get_backbone(cfg: Config, model: nn.Module) -> HierarchicalBackbone:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, HierarchicalBackbone):
        raise ConfigError(
            f"the backbone of {cfg.filename} is a {type(backbone).__name__}: name the config of a "
            "detector or segmentor on a backbone of slide_mm"
        )
    return backbone


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


def _read_photographs(
    paths: Sequence[str | Path], points: Sequence[tuple[float, float]], model: nn.Module
) -> list[Photograph]:
    if any(not 0 <= place < 1 for point in points for place in point):
        raise ConfigError("--points lie outside the image: give fractions of width and height")
    channels = image_channels(model)
    if channels != 3:
        raise ConfigError(
            f"the model takes images of {channels} channels: this report looks at photographs, of 3"
        )
    if not paths and not is_installed("sklearn"):
        raise ConfigError(
            "the photograph to look at is scikit-learn's, which is not installed: give images with "
            "--images, or pip install scikit-learn"
        )
    images = {str(path): _read_image(path) for path in paths}
    photographs = []
    for name, image in (images or {"bundled photograph": bundled_photograph()}).items():
        pixels = np.array(image)
        height, width = pixels.shape[:2]
        chosen = [(int(x * width), int(y * height)) for x, y in points]
        photographs.append(
            Photograph(
                name,
                pixels,
                _preprocess(pixels, model),
                chosen or salient_points(pixels, NUM_POINTS),
            )
        )
    return photographs


def _read_image(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except FileNotFoundError as error:
        raise ConfigError(f"image {path} does not exist: check the path") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    if min(image.size) < MIN_SIDE:
        size = f"{image.width} x {image.height}"
        raise ConfigError(f"image {path} is {size}: give {MIN_SIDE} pixels a side at least")
    return image


def _preprocess(pixels: np.ndarray, model: nn.Module) -> Tensor:
    """What the model's own data preprocessor makes of an RGB image, without its padding."""
    height, width = pixels.shape[:2]
    # Configs tell preprocessors how to treat what OpenMMLab's pipelines load: BGR.
    bgr = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
    data = model.data_preprocessor(dict(inputs=[bgr], data_samples=[BaseDataElement()]), False)
    image = data["inputs"][..., :height, :width]
    return image.float().to(next(model.backbone.parameters()).device)


def _size(photograph: Photograph) -> str:
    height, width = photograph.pixels.shape[:2]
    return f"{width} x {height}"


def _write_report(out: Path, facts: dict[str, str], sections: Sequence[Section]) -> Path:
    """Write pictures and numbers, and last the report."""
    pictures = {x.name: x.to_png() for section in sections for x in section.pictures}
    for name, png in pictures.items():
        _write(out / f"{name}.png", png)
    numbers = {"facts": facts, **{section.name: section.numbers for section in sections}}
    _write(out / "report.json", json.dumps(numbers, indent=1, allow_nan=False).encode())
    title = f"Local attention of {Path(facts['config']).stem}"
    html = render_html(title, facts, sections, pictures)
    _write(out / "report.html", html.encode())
    return out / "report.html"


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)
