"""The datasets that a config names, and whether they are there."""

import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from slide_mm.engine.config import iter_evaluators
from slide_mm.engine.reporting import ConfigError


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Refuse to go on without the data of some splits.

    Args:
        cfg: The config.
        splits: Those of ``'train'``, ``'val'`` and ``'test'`` that the run will use. A split that
            the config sets to None is not used.

    Raises:
        ConfigError: If a folder or an annotation file of one of their datasets or metrics doesn't
            exist.
    """
    for split in splits:
        for key, dataset in iter_datasets(cfg, split):
            for line in find_missing_paths(key, dataset).values():
                raise ConfigError(line)
        for metric in iter_evaluators(cfg.get(f"{split}_evaluator")):
            key = f"{split}_evaluator.ann_file"
            line = _tell_missing(metric.get("ann_file"), key, key)
            if line:
                raise ConfigError(line)


def iter_datasets(cfg: Config, split: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the datasets of a split, those inside wrappers, each with its dotted key."""
    loader = cfg.get(f"{split}_dataloader") or {}
    return _unwrap(loader.get("dataset"), f"{split}_dataloader.dataset")


def _unwrap(dataset: Any, key: str) -> Iterator[tuple[str, ConfigDict]]:
    if not isinstance(dataset, dict):
        return
    if isinstance(dataset.get("dataset"), dict):
        yield from _unwrap(dataset.dataset, f"{key}.dataset")
    elif "datasets" in dataset:
        for index, part in enumerate(dataset.datasets):
            yield from _unwrap(part, f"{key}.datasets.{index}")
    else:
        yield key, dataset


def dataset_paths(dataset: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield a dataset's local paths as MMEngine joins them, each with its key."""
    if (dataset.get("backend_args") or {}).get("backend", "local") != "local":
        return
    root = dataset.get("data_root") or ""
    if root:
        yield "data_root", root
    prefixes = (dataset.get("data_prefix") or {}).items()
    paths = [("ann_file", dataset.get("ann_file"))]
    paths += [(f"data_prefix.{name}", prefix) for name, prefix in prefixes]
    for name, path in paths:
        if path:
            yield name, os.path.join(root, path)


def find_missing_paths(key: str, dataset: ConfigDict) -> dict[str, str]:
    """Say which paths of a dataset don't exist, and what to do: a line by the path's own key."""
    lines = {
        name: _tell_missing(path, f"{key}.{name}", f"{key}.data_root")
        for name, path in dataset_paths(dataset)
    }
    return {name: line for name, line in lines.items() if line}


def _tell_missing(path: str | None, key: str, option: str) -> str | None:
    if not is_local(path) or os.path.exists(path):
        return None
    below = "" if os.path.isabs(path) else f" below {os.getcwd()}"
    return (
        f"{key} is {path}, which does not exist{below}: put the dataset there, as docs/data.md "
        f"tells, or say where it is with --cfg-options {option}=PATH"
    )


def is_local(path: str | None) -> bool:
    """Whether a path names something on this machine, as opposed to an address."""
    return bool(path) and "://" not in path
