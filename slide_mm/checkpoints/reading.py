"""Checkpoint files."""

import os
from collections.abc import Mapping
from typing import Any

from mmengine.runner import CheckpointLoader
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint file into memory, on the CPU.

    Args:
        path: A local file, or any address that MMEngine's ``CheckpointLoader`` knows.

    Raises:
        CheckpointError: If the file doesn't exist, is damaged, or holds no dict.
    """
    try:
        checkpoint = CheckpointLoader.load_checkpoint(
            os.fspath(path), map_location="cpu", logger="silent"
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist: check the path") from error
    except Exception as error:  # Unpickling damaged bytes can raise anything.
        raise CheckpointError(
            f"checkpoint {path} ({_size(path)}) cannot be read: it is cut off, damaged or no "
            "PyTorch checkpoint; copy it again or give an earlier one"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}: give a file with a state_dict"
        )
    return checkpoint


def get_state_dict(checkpoint: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Take the weights out of a checkpoint, as MMEngine does when it loads one.

    Args:
        checkpoint: A training checkpoint with its weights under ``state_dict``, or the weights
            themselves.
        prefix: Take only the weights below this name, such as ``'backbone.'``, and cut it off.

    Returns:
        Tensors by name, without the ``module.`` that a distributed wrapper adds.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    names = {name: name.removeprefix("module.") for name in weights}
    return {
        names[name].removeprefix(prefix): value
        for name, value in weights.items()
        if isinstance(value, Tensor) and names[name].startswith(prefix)
    }


def _size(path: str | os.PathLike) -> str:
    return f"{os.path.getsize(path)} bytes" if os.path.isfile(path) else "remote"
