"""Model cards: what a folder holds and how to use it, in the form of the Hugging Face hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models._hub import generate_readme
from torch import nn

import slide_mm
from slide_mm.engine.reporting import ConfigError

CARD = "README.md"
_HUB_TASKS = {"detection": "object-detection", "segmentation": "image-segmentation"}
_MAX_CLASSES = 20
_USAGE = """
With slide_mm, and this folder as `FOLDER`:

```bash
python tools/infer.py FOLDER 'photos/*.jpg' --out predictions
python tools/test.py FOLDER
python tools/deployment/export.py FOLDER --out model.onnx
```

`test.py` looks for the data where `config.py` says, or where `--cfg-options` does. The backbone
starts another model with `init_cfg=dict(type="Pretrained", checkpoint="FOLDER")`. `model.json`
tells classes, preprocessing and metrics to other programs.
"""
_BACKBONE_USAGE = """
```python
import slide_mm, timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)
```

In a detector or a segmentor: `init_cfg=dict(type="Pretrained", checkpoint="FOLDER")`.
"""


def check_license(name: str) -> None:
    """Refuse what can't be the name of a licence.

    Raises:
        ConfigError: If it is no single word.
    """
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ConfigError(f"--license is {name!r}: give a short name, such as apache-2.0 or other")


def write_model_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the card of a detector or segmentor.

    Args:
        folder: Its folder.
        facts: What :func:`~slide_mm.packing.models.pack_model` writes to ``model.json``.
    """
    classes = facts.get("classes", [])
    more = [f"and {len(classes) - _MAX_CLASSES} more"] if len(classes) > _MAX_CLASSES else []
    metrics = {key: f"{x:.4g}" for key, x in facts["metrics"].items()}
    name = f"{facts['model']} with {facts['backbone']}"
    details = {
        "Task": facts["task"],
        "Classes": f"{len(classes)}: {', '.join([*classes[:_MAX_CLASSES], *more])}",
        "Parameters": f"{facts['num_parameters']:,}",
        "Modules that the config imports": facts["imports"] or "none",
        "Trained for": facts["trained_for"] or "not recorded",
        "Metrics of these weights, of the training's own validation": metrics or "not recorded",
        "Licence": facts["license"],
    }
    _write(folder, name, _HUB_TASKS[facts["task"]], "slide_mm", facts["license"], details, _USAGE)


def write_backbone_card(folder: Path, model: nn.Module, license_name: str) -> None:
    """Write the card of a backbone or classifier of timm."""
    task = "image-classification" if model.num_classes else "image-feature-extraction"
    name = model.pretrained_cfg["architecture"]
    details = {
        "Classes": model.num_classes or "none",
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "Licence": license_name,
    }
    _write(folder, name, task, "timm", license_name, details, _BACKBONE_USAGE)


def _write(
    folder: Path,
    name: str,
    task: str,
    library: str,
    license_name: str,
    details: Mapping[str, Any],
    usage: str,
) -> None:
    card = {
        "license": license_name,
        "library_name": library,
        "tags": [task, "slide_mm"],
        "details": {**details, "Packed by": f"slide_mm {slide_mm.__version__}"},
        "usage": usage,
    }
    folder.joinpath(CARD).write_text(generate_readme(card, name, task), encoding="utf-8")
