"""Backbones and classifiers in timm's hub format."""

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.config import Config
from timm.models import save_for_hf
from torch import nn

from slide_mm.checkpoints import (
    CheckpointError,
    CheckpointMismatchError,
    ConversionReport,
    convert_checkpoint,
)
from slide_mm.checkpoints.report import MISSING
from slide_mm.engine.config import type_name
from slide_mm.engine.reporting import ConfigError
from slide_mm.models import FAMILIES, Family, list_archs
from slide_mm.packing.card import check_license, write_backbone_card
from slide_mm.packing.folder import check_new, new_folder
from slide_mm.packing.models import find_config

# Of the training, of features, and of what is written here.
_NOT_OF_THE_ARCH = {
    *("type", "arch", "init_cfg", "pretrained", "out_indices", "frozen_stages", "with_cp"),
    *("drop_rate", "attn_drop_rate", "drop_path_rate", "_scope_"),
}
# A classifier's own: a backbone may have neither.
_OF_A_CLASSIFIER = ("head.", "out_norms.")


def pack_backbone(
    checkpoint: str,
    out: str | Path,
    config: str | None = None,
    license_name: str = "unknown",
    arch: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a backbone, with its classifier if there is one, as ``timm.create_model`` takes it.

    Args:
        checkpoint: Weights of a backbone, classifier, detector or segmentor.
        out: Folder to write, new or empty.
        config: Config that has the backbone. Default: as in
            :func:`~slide_mm.packing.models.pack_model`.
        license_name: For card and config, such as ``'apache-2.0'``.
        arch: One of :func:`~slide_mm.models.list_archs`, in place of a config.
        options: With ``arch``, further arguments of the backbone.

    Returns:
        Lines about what the owner should look at.

    Raises:
        ConfigError: If the config or an option is wrong, or the folder would tell of this machine.
        CheckpointError: If the checkpoint is missing, damaged or not exactly of this arch.
    """
    out = check_new(out)
    check_license(license_name)
    if arch is None:
        cfg = find_config(checkpoint, config)
        family, options = _read_config(cfg)
        pretrained_cfg = _read_preprocessor(cfg)
    else:
        family, options = _look_up(arch, options or {})
        pretrained_cfg = {}
    pretrained_cfg["license"] = license_name
    classifier = _build_classifier(checkpoint, family, options)
    with new_folder(out, os.path.dirname(checkpoint)) as (folder, notes):
        save_for_hf(
            classifier,
            str(folder),
            model_config={"pretrained_cfg": pretrained_cfg},
            model_args=options,
            safe_serialization=True,
        )
        write_backbone_card(folder, classifier, license_name)
        _compare(classifier, folder)
    return notes


def _read_config(cfg: Config) -> tuple[Family, dict[str, Any]]:
    """Find the family of a config's backbone, and what its classifier takes."""
    backbone = (cfg.get("model") or {}).get("backbone") or {}
    families = {family.backbone.__name__: family for family in FAMILIES.values()}
    kind = type_name(backbone)
    if kind not in families:
        raise ConfigError(
            f"the backbone of {cfg.filename} is {kind or 'no part of its model'}, none of ours: "
            "name what the weights are of, as in --backbone slide-swin/tiny"
        )
    options = {key: x for key, x in backbone.items() if key not in _NOT_OF_THE_ARCH}
    return families[kind], {"arch": backbone.get("arch", _first_arch(families[kind])), **options}


def _look_up(arch: str, options: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    if arch not in list_archs():
        raise ConfigError(f"--backbone is {arch}: choose one of {', '.join(list_archs())}")
    name, arch = arch.split("/")
    return FAMILIES[name], {"arch": arch, **options}


def _first_arch(family: Family) -> str:
    return next(iter(family.backbone.arch_zoo))


def _read_preprocessor(cfg: Config) -> dict[str, Any]:
    """Means and deviations of the images, from 0 to 1, as timm gives them."""
    preprocessor = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    mean = preprocessor.get("mean")
    if not mean:
        return {}
    if len(mean) == 3 and not preprocessor.get("bgr_to_rgb"):
        raise ConfigError(
            f"data_preprocessor of {cfg.filename} leaves images as BGR, and timm knows RGB alone"
        )
    return {key: [x / 255 for x in preprocessor[key]] for key in ("mean", "std")}


def _build_classifier(checkpoint: str, family: Family, options: dict[str, Any]) -> nn.Module:
    """Build timm's model with the weights of a checkpoint; ``options`` become those of timm."""
    try:
        with torch.device("meta"):
            backbone = family.backbone(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the backbone cannot be built: {error}") from error
    conversion = convert_checkpoint(checkpoint, backbone, keep_classifier=True)
    weights = conversion.weights
    if "in_channels" in options:
        options["in_chans"] = options.pop("in_channels")
    arch = options["arch"]
    if isinstance(arch, str):
        options.pop("arch")
    else:
        arch = _first_arch(family)
    num_classes = len(weights.get("head.fc.weight", ()))
    name = f"{family.timm_name}_{arch}"
    classifier = timm.create_model(name, num_classes=num_classes, **options).eval()
    _require_all(conversion.report, classifier.state_dict().keys() - weights.keys())
    own = classifier.state_dict().keys()
    classifier.load_state_dict({n: x for n, x in weights.items() if n in own}, strict=False)
    return classifier


def _require_all(report: ConversionReport, missing: Set[str]) -> None:
    """Refuse weights of another arch, which a training may begin with but nobody hands on."""
    changed = [entry.name for entry in [*report.resampled, *report.misplaced]]
    changed += [entry.name for entry in report.initialised if entry.note != MISSING]
    changed += sorted(name for name in missing if not name.startswith(_OF_A_CLASSIFIER))
    if changed:
        raise CheckpointMismatchError(
            f"{report.origin} is not exactly of this arch, by {changed[0]}: give the config of its "
            "training, or its arch and --model-options"
        )


def _compare(classifier: nn.Module, folder: Path) -> None:
    packed = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    for name, tensor in classifier.state_dict().items():
        if not torch.equal(packed[name], tensor):
            raise CheckpointError(f"the packed model has another {name} than the checkpoint")
