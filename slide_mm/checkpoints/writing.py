"""Files written whole or not at all, checkpoints among them."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from slide_mm.checkpoints.errors import CheckpointError

FORMATS = ("pth", "safetensors")


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Give a name to write to, of the same ending, which becomes ``path`` if nothing went wrong."""
    path = Path(path)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(path: str | Path) -> Iterator[Path]:
    """Give a folder to write to, which becomes ``path``, new or empty, if nothing went wrong."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_unfinished(folder: str | Path, suffix: str) -> None:
    """Remove what :func:`write_atomically` has left of files such as ``.pth``, when killed.

    Nobody else may be writing to the folder.
    """
    for path in Path(folder).glob(f".*.*{suffix}"):
        if re.fullmatch(rf"\..+\.\d+{re.escape(suffix)}", path.name):
            path.unlink(missing_ok=True)


def write_checkpoint(
    weights: Mapping[str, Tensor],
    path: str | os.PathLike,
    meta: Mapping[str, str],
    file_format: str | None = None,
) -> None:
    """Write weights to a file, whole or not at all; its folders are made.

    Args:
        weights: Tensors by name.
        path: The file.
        meta: What they are; kept beside them.
        file_format: One of ``FORMATS``. Default: ``'safetensors'`` if ``path`` ends so, else
            ``'pth'``.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    path = Path(path)
    if file_format is None:
        file_format = "safetensors" if path.suffix == ".safetensors" else "pth"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as unfinished:
            if file_format == "safetensors":
                safetensors.torch.save_file(dict(weights), unfinished, {"format": "pt", **meta})
            else:
                torch.save({"state_dict": dict(weights), "meta": dict(meta)}, unfinished)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
