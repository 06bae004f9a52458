"""Files that commands write, and devices that they use."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from slide_mm.engine.reporting import ConfigError

PICTURES = (".png", ".svg", ".pdf")


def check_output(path: str | Path, suffixes: Sequence[str] = ()) -> Path:
    """Refuse a file that can't be written, before hours of work; make its folder.

    Args:
        path: The file.
        suffixes: Allowed ends of its name. Default: any.

    Raises:
        ConfigError: If its folder can't be made or written to, or it ends in something else.
    """
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(f"--out is {path}: name a file ending in {' or '.join(suffixes)}")
    make_folder(path.parent)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give a file")
    return path


def make_folder(path: str | Path) -> Path:
    """Make a folder that files can be written to.

    Raises:
        ConfigError: If that is impossible.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f"{path} cannot be written: give another folder")
    return path


def check_device(name: str) -> torch.device:
    """Refuse a device that PyTorch can't use here.

    Raises:
        ConfigError: If it can't; the message gives PyTorch's reason.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used: {first_line}") from error
