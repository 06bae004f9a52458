"""Checkpoints that a killed training leaves whole."""

import os
from collections import deque
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from slide_mm.checkpoints.writing import remove_unfinished, write_atomically
from slide_mm.engine.config import type_name


def save_checkpoints_whole(cfg: Config) -> None:
    """Let the training of a config save its checkpoints by :class:`WholeCheckpointHook`."""
    hooks = cfg.setdefault("default_hooks", {})
    hooks.setdefault("checkpoint", dict(type="CheckpointHook", interval=1))  # As MMEngine does.
    for hook in [*hooks.values(), *(cfg.get("custom_hooks") or [])]:
        if type_name(hook) == "CheckpointHook":
            hook["type"] = "WholeCheckpointHook"


class WholeFileBackend(LocalBackend):
    """The local disk, where a file has its name once it is whole and on the disk."""

    def __init__(self) -> None:
        self._removed: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, over an older one in one go."""
        folder = Path(filepath).parent
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(filepath) as unfinished, open(unfinished, "wb") as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(folder)

    def remove(self, filepath: str) -> None:
        """Remove a file, as soon as :meth:`empty_bin` is called."""
        self._removed.append(filepath)

    def empty_bin(self) -> None:
        """Remove the files for good."""
        while self._removed:
            Path(self._removed.pop()).unlink(missing_ok=True)


register_backend("whole_files", WholeFileBackend, force=True)


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's hook, but an old checkpoint goes when the new one is whole, not before.

    What it saves elsewhere than on the local disk is left to the backend that is asked for.
    """

    def __init__(self, **settings: Any) -> None:
        is_local = (settings.get("backend_args") or {}).get("backend", "local") == "local"
        is_local &= "://" not in str(settings.get("out_dir"))
        if is_local and settings.get("file_client_args") is None:
            settings["backend_args"] = dict(backend="whole_files")
        super().__init__(**settings)
        self._num_kept = self.max_keep_ckpts

    def before_train(self, runner) -> None:
        """Find out where checkpoints go, and remove what a killed run has left there."""
        self._confine(runner)
        super().before_train(runner)
        if self._num_kept > 0:
            # The new checkpoint names the one that it replaces, so that a run resumed from it
            # removes that one if this run is killed first.
            self.max_keep_ckpts = self._num_kept + 1
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids, self.max_keep_ckpts)
        if is_main_process() and isinstance(self.file_backend, WholeFileBackend):
            remove_unfinished(self.out_dir, Path(self.filename_tmpl).suffix)
        self._remove_outdated()

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint, and remove what it replaces."""
        super().after_train_iter(*args, **kwargs)
        self._remove_outdated()

    def after_train_epoch(self, runner) -> None:
        """Save a checkpoint, and remove what it replaces."""
        super().after_train_epoch(runner)
        self._remove_outdated()

    def after_val_epoch(self, runner, metrics) -> None:
        """Save the best checkpoint, and remove what it replaces."""
        super().after_val_epoch(runner, metrics)
        self._remove_outdated()

    def _confine(self, runner) -> None:
        """Take the files that a checkpoint names for those of this run: it removes them.

        The folder may have been moved, and a checkpoint of somebody else's may name any file.
        """
        folder = runner.work_dir
        if self.out_dir and Path(self.out_dir) != Path(folder):
            folder = os.path.join(self.out_dir, Path(os.path.abspath(folder)).name)
        info = runner.message_hub.runtime_info
        for key in [key for key in info if key.startswith("best_ckpt")]:
            name = os.path.basename(str(info.pop(key)))
            if name.startswith("best_"):
                info[key] = os.path.join(folder, name)
        if "keep_ckpt_ids" in info:
            info["keep_ckpt_ids"] = [x for x in info["keep_ckpt_ids"] if type(x) is int]

    def _remove_outdated(self) -> None:
        while 0 < self._num_kept < len(self.keep_ckpt_ids):
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            path = self.file_backend.join_path(self.out_dir, name)
            if is_main_process() and self.file_backend.isfile(path):
                self.file_backend.remove(path)
        if isinstance(self.file_backend, WholeFileBackend):
            self.file_backend.empty_bin()


def _sync_folder(path: Path) -> None:
    """Put a folder's list of names on the disk, where the system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
