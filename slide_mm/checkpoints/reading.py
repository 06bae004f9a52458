"""Checkpoint files: tensors and plain values are read, code is not."""

import os
from collections.abc import Mapping
from typing import Any

from slide_mm.checkpoints.containers import read_file
from slide_mm.checkpoints.errors import CheckpointError
from slide_mm.checkpoints.fetching import local_copy


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint file into memory, on the CPU, without running any code from it.

    Tensors and the plain state of a training are read: numbers, strings, dicts, lists, tuples,
    arrays of numbers and MMEngine's histories. What else trainings leave (settings, times, paths)
    becomes lifeless objects.

    Args:
        path: A file of ``torch.save`` or safetensors: see
            :func:`~slide_mm.checkpoints.fetching.local_copy`.

    Raises:
        CheckpointError: If the file doesn't exist, is damaged, holds code, or holds no dict.
    """
    fetched = False
    try:
        with local_copy(path) as local_path:
            fetched = True
            checkpoint = read_file(local_path)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path} {error}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist: check the path") from error
    except Exception as error:  # Damaged bytes, and servers, can raise anything.
        raise CheckpointError(f"checkpoint {path} {_describe(path, fetched, error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}: give a file with a state_dict"
        )
    return checkpoint


def _describe(path: str | os.PathLike, fetched: bool, error: Exception) -> str:
    if not fetched:
        return f"cannot be fetched ({type(error).__name__}: {error}): check the address"
    path = os.path.expanduser(path)
    kind = "a folder" if os.path.isdir(path) else "remote"
    size = f"{os.path.getsize(path)} bytes" if os.path.isfile(path) else kind
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return (
        f"({size}) cannot be read: it is cut off, damaged or no checkpoint of PyTorch or "
        "safetensors; copy it again or give an earlier one"
    )
