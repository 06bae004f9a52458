"""Going on with a training that was ended."""

import os
import re
from glob import escape
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine.reporting import log_once
from slide_mm.engine.weights import check_checkpoint


def set_resume(cfg: Config, resume: str | None, model: nn.Module) -> dict[str, Any] | None:
    """Set ``resume`` and ``load_from`` to the checkpoint to go on from, and check it.

    In a work folder, damaged checkpoints and those of other models are passed over, each with a
    line in the log; where none is left, the training starts as the config says.

    Args:
        cfg: The config.
        resume: A checkpoint; ``'auto'`` for the last one in the work folder; None for what the
            config says.
        model: The config's model.

    Returns:
        ``meta`` of the checkpoint; None if the training starts anew, with ``load_from`` unchecked.

    Raises:
        CheckpointError: If a checkpoint that was named cannot be used.
    """
    if resume is None and cfg.get("resume"):
        resume = cfg.get("load_from") or "auto"
    if resume == "auto":
        return _resume_last(cfg, model)
    if resume is None:
        return None
    cfg.resume, cfg.load_from = True, resume
    return check_checkpoint(cfg, model, whole=True)["meta"]


def _resume_last(cfg: Config, model: nn.Module) -> dict[str, Any] | None:
    before = cfg.get("load_from")
    candidates = _recent_checkpoints(cfg)
    for path in candidates:
        cfg.resume, cfg.load_from = True, str(path)
        try:
            return check_checkpoint(cfg, model, whole=True)["meta"]
        except CheckpointError as error:
            log_once(f"not resuming: {error}")
    found = "no checkpoint to resume from" if candidates else "nothing to resume"
    log_once(f"{found} in {cfg.work_dir}: starting from the beginning")
    cfg.resume, cfg.load_from = False, before
    return None


def _recent_checkpoints(cfg: Config) -> list[Path]:
    """Checkpoints that a config's training has left, newest first.

    The one on record is the last, unless the run was killed before it could record the next. The
    times of files say little where the folder was copied, and numbers where a run began anew.
    """
    folder, patterns = _places(cfg)
    record = Path(cfg.work_dir, "last_checkpoint")
    recorded = Path(_read(record)).name  # The folder may have been moved since.
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    by_time = sorted(found, key=lambda path: (path.stat().st_mtime_ns, _number(path)), reverse=True)

    def is_first(path: Path) -> bool:
        is_later = _number(path) > _number(Path(recorded))
        return is_later and path.stat().st_mtime_ns >= record.stat().st_mtime_ns

    if recorded:
        by_time.sort(key=lambda path: (not is_first(path), path.name != recorded))
    return by_time


def _places(cfg: Config) -> tuple[Path, list[str]]:
    """Folder of a config's checkpoints, and patterns of their names."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    patterns = ["epoch_*.pth", "iter_*.pth"]
    if hook.get("filename_tmpl"):
        patterns.append("*".join(map(escape, hook["filename_tmpl"].split("{}"))))
    if hook.get("out_dir"):
        return Path(hook["out_dir"], Path(os.path.abspath(cfg.work_dir)).name), patterns
    return Path(cfg.work_dir), patterns


def _read(record: Path) -> str:
    return record.read_text(errors="replace").strip("\0 \n") if record.is_file() else ""


def _number(path: Path) -> int:
    """The epoch or iteration in a checkpoint's name."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else -1
