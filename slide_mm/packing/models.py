"""Detectors and segmentors in folders: weights, config, what they are, and a card."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from slide_mm.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from slide_mm.checkpoints.folders import FACTS, HASH, WEIGHTS, hash_file
from slide_mm.engine.config import get_task, load_config, require_keys, type_name
from slide_mm.engine.data_paths import iter_datasets
from slide_mm.engine.explaining import explain
from slide_mm.engine.plain_config import CONFIG, read_plain_config
from slide_mm.engine.preflight import check_model
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.weights import load_weights
from slide_mm.packing.card import check_license, write_model_card
from slide_mm.packing.cleaning import clean_config
from slide_mm.packing.folder import check_new, new_folder
from slide_mm.packing.metrics import describe_training, find_metrics


def pack_model(
    checkpoint: str, out: str | Path, config: str | None = None, license_name: str = "unknown"
) -> list[str]:
    """Write a trained model to a folder that other machines can use.

    Args:
        checkpoint: Weights as a training leaves them. Averaged ones count where testing takes
            them.
        out: Folder to write, new or empty.
        config: Config of the model. Default: the one in the checkpoint, or else the only one
            beside it.
        license_name: For the card, such as ``'apache-2.0'``.

    Returns:
        Lines about what the owner should look at.

    Raises:
        ConfigError: If the config or an option is wrong, or the folder would tell of this machine.
        CheckpointError: If the checkpoint is missing, damaged or of another architecture.
    """
    out = check_new(out)
    check_license(license_name)
    cfg = find_config(checkpoint, config)
    require_keys(cfg, "packing", "model", "test_dataloader")
    task = {"mmdet": "detection", "mmseg": "segmentation"}[get_task(cfg)]
    cfg.resume = False
    model = check_model(cfg, pretrained=False)
    content = load_weights(cfg, model, checkpoint)
    text = clean_config(cfg)
    facts = {
        "task": task,
        **_describe(read_plain_config(text, CONFIG)),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_for": describe_training(content),
        "metrics": find_metrics(checkpoint, content, cfg),
        "license": license_name,
    }
    with new_folder(out, os.path.dirname(checkpoint)) as (folder, notes):
        folder.joinpath(CONFIG).write_text(text, encoding="utf-8")
        weights = {name: x.clone().contiguous() for name, x in model.state_dict().items()}
        write_checkpoint(weights, folder / WEIGHTS, {})
        facts[HASH] = hash_file(folder / WEIGHTS)
        write_model_card(folder, facts)
        told = json.dumps(facts, indent=2, ensure_ascii=False, default=list)
        folder.joinpath(FACTS).write_text(told + "\n", encoding="utf-8")
        _compare(model, folder)
    return notes


def find_config(checkpoint: str, config: str | None) -> Config:
    """Find the config of a checkpoint.

    Raises:
        ConfigError: If there is none.
        CheckpointError: If the checkpoint cannot be read.
    """
    if config or os.path.isdir(checkpoint):
        return load_config(config or checkpoint)
    meta = read_checkpoint(checkpoint).get("meta")
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if isinstance(text, str):
        try:
            return read_plain_config(text, str(checkpoint))
        except ConfigError as error:
            raise ConfigError(f"{error}; give the config with --config") from error
    beside = sorted(Path(checkpoint).absolute().parent.glob("*.py"))
    if len(beside) != 1:
        found = " and ".join(path.name for path in beside[:2]) or "no config"
        raise ConfigError(
            f"checkpoint {checkpoint} holds no config, and beside it there is {found}: give one "
            "with --config"
        )
    return load_config(beside[0])


def _describe(cfg: Config) -> dict[str, Any]:
    """Tell what other programs must know of a model: names, classes, preprocessing."""
    backbone = cfg.model.get("backbone") or {}
    arch = backbone.get("arch")
    names = [type_name(backbone), arch if isinstance(arch, str) else ""]
    pipelines = [dataset.get("pipeline", []) for _, dataset in iter_datasets(cfg, "test")]
    return {
        "model": type_name(cfg.model),
        "backbone": " ".join(filter(None, names)),
        "imports": cfg.get("custom_imports", {}).get("imports", []),
        **_describe_classes(cfg),
        "preprocessing": {
            "pipeline": pipelines[0] if pipelines else [],
            "data_preprocessor": cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor"),
        },
    }


def _describe_classes(cfg: Config) -> dict[str, Any]:
    """Names and colours of the classes of the test dataset."""
    for _, dataset in iter_datasets(cfg, "test"):
        try:
            with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
                meta = DATASETS.build({**dataset, "pipeline": [], "lazy_init": True}).metainfo
        except Exception as error:  # Datasets of others fail in many ways.
            raise ConfigError(f"cannot build the test dataset: {explain(error, cfg)}") from error
        return {key: meta[key] for key in ("classes", "palette") if meta.get(key)}
    return {}


def _compare(model: nn.Module, folder: Path) -> None:
    """Load a folder as the tools will, and refuse what isn't the same bit by bit."""
    cfg = load_config(folder)
    packed = check_model(cfg, pretrained=False)
    load_weights(cfg, packed, str(folder))
    given, expected = packed.state_dict(), model.state_dict()
    for name in given.keys() | expected.keys():
        if name not in given or not torch.equal(given[name], expected[name]):
            raise CheckpointError(f"the packed model has another {name} than the checkpoint")
