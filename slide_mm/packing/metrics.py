"""The metrics of a checkpoint: those of its own iteration, or none."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config

# Logged with the metrics.
_TIMES = ("data_time", "time")


def describe_training(content: Mapping[str, Any]) -> str:
    """Say for how long a checkpoint was trained, as in ``'3 epochs, 60 iterations'``."""
    meta = content["meta"]
    counts = {unit: meta.get(key) for unit, key in (("epochs", "epoch"), ("iterations", "iter"))}
    known = {unit: x for unit, x in counts.items() if type(x) is int and x > 0}
    return ", ".join(f"{x} {unit if x > 1 else unit[:-1]}" for unit, x in known.items())


def find_metrics(
    checkpoint: str | os.PathLike, content: Mapping[str, Any], cfg: Config
) -> dict[str, float]:
    """Find what the validation gave for the very weights of a checkpoint.

    It is in the checkpoint if that was saved after the validation, as the best one is, and else in
    the log of the run, where that still lies beside it.

    Args:
        checkpoint: The file.
        content: What it holds: ``meta`` and, if MMEngine saved it, ``message_hub``.
        cfg: The config of the training.

    Returns:
        Metrics by name, such as ``'coco/bbox_mAP'``; empty if there are none of this iteration.
    """
    meta, hub = content["meta"], content.get("message_hub") or {}
    info = hub.get("runtime_info") or {}
    steps = {"iter": meta.get("iter")}
    epoch = meta.get("epoch")
    # In the middle of the next epoch, the number of those that have ended is still the same.
    if type(epoch) is int and info.get("epoch") == epoch - 1:
        steps["epoch"] = epoch
    best = [os.path.basename(str(x)) for key, x in info.items() if key.startswith("best_ckpt")]
    saved = [re.search(r"_(epoch|iter)_(\d+)\.\w+$", name) for name in best]
    if any(match and steps.get(match[1]) == int(match[2]) for match in saved):
        histories = (hub.get("log_scalars") or {}).items()
        found = {key: x.current() for key, x in histories if key.startswith("val/")}
        return _without_times({key.removeprefix("val/"): x for key, x in found.items()})
    logger = (cfg.get("default_hooks") or {}).get("logger") or {}
    by_epoch = logger.get("log_metric_by_epoch", True)
    step = steps.get("epoch" if by_epoch else "iter")
    return _read_log(checkpoint, meta, step) if step else {}


def _read_log(
    checkpoint: str | os.PathLike, meta: Mapping[str, Any], step: int
) -> dict[str, float]:
    """Read a step's metrics from the log of the process that wrote the checkpoint."""
    time = re.search(r"_(\d{8}_\d{6})$", str(meta.get("experiment_name")))
    path = Path(checkpoint).parent / (time[1] if time else "") / "vis_data" / "scalars.json"
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):  # A killed process leaves half a line.
            record = json.loads(line)
            # Training logs beside the metrics, and tells the iteration.
            if record.pop("step", None) == step and "iter" not in record:
                found = record
    return _without_times(found)


def _without_times(record: Mapping[str, Any]) -> dict[str, float]:
    found = {key: x for key, x in record.items() if key not in _TIMES}
    return {key: float(x) for key, x in found.items() if isinstance(x, int | float)}
