"""Going on with a training that was ended."""

from pathlib import Path

from mmengine.config import Config

from slide_mm.checkpoints import CheckpointError, read_checkpoint
from slide_mm.engine.reporting import log_once


def set_resume(cfg: Config, resume: str | None) -> None:
    """Set ``resume`` and ``load_from`` to the checkpoint to go on from.

    A training killed while it wrote a checkpoint leaves a damaged one, or none where its name is
    recorded; the one before it is taken then.

    Args:
        cfg: The config.
        resume: A checkpoint; ``'auto'`` for the last one in the work folder, and without any the
            training starts as the config says; None for what the config says.

    Raises:
        CheckpointError: If there are checkpoints in the work folder and none can be read.
    """
    if resume is None and cfg.get("resume") and not cfg.get("load_from"):
        resume = "auto"
    if resume == "auto":
        resume = _last_checkpoint(Path(cfg.work_dir))
        cfg.resume = resume is not None
    elif resume is not None:
        cfg.resume = True
    if resume is not None:
        cfg.load_from = resume


def _last_checkpoint(work_dir: Path) -> str | None:
    candidates = _recent_checkpoints(work_dir)
    for path in candidates:
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            log_once(f"not resuming: {error}")
        else:
            return str(path)
    if candidates:
        raise CheckpointError(
            f"no checkpoint in {work_dir} can be read, the last is {candidates[0]}: remove them "
            "to start from the beginning"
        )
    log_once(f"nothing to resume in {work_dir}: starting from the beginning")
    return None


def _recent_checkpoints(work_dir: Path) -> list[Path]:
    """Checkpoints of a work folder: the recorded one, then the others, newest first."""
    record = work_dir / "last_checkpoint"
    recorded = record.read_text().strip() if record.is_file() else ""
    others = [*work_dir.glob("epoch_*.pth"), *work_dir.glob("iter_*.pth")]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    first = [Path(recorded)] if recorded else []
    return first + [path for path in others if path not in first]
