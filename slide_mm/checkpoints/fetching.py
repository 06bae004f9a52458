"""Local copies of the files that addresses and MMEngine's names stand for."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.fileio import get_local_path
from mmengine.runner import checkpoint as mmengine_checkpoint
from timm.models._hub import download_from_hf

from slide_mm.checkpoints.folders import WEIGHTS, find_weights

# A name such as resnet50-19c8e357.pth is that of no other file.
_NAME_WITH_HASH = re.compile(r".*[-_][0-9a-f]{8,64}\.\w+")
_CATALOGUES: dict[str, Callable[[], dict[str, str]]] = {
    "modelzoo": mmengine_checkpoint.get_torchvision_models,
    "torchvision": mmengine_checkpoint.get_torchvision_models,
    "open-mmlab": mmengine_checkpoint.get_external_models,
    "openmmlab": mmengine_checkpoint.get_external_models,
    "mmcls": mmengine_checkpoint.get_mmcls_models,
}


@contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[str]:
    """Give a local path to a file, for as long as the context lasts.

    Args:
        path: A local path, an address that ``mmengine.fileio`` knows, or a name of MMEngine's
            catalogues, such as ``'torchvision://resnet50'``. A file whose name ends with its hash
            is kept where PyTorch keeps those that it downloads; others are fetched anew. In place
            of a file, a folder that holds a model, and as timm names them,
            ``'local-dir:FOLDER'`` and ``'hf-hub:OWNER/NAME'``.

    Raises:
        CheckpointError: If a folder holds no whole model.
        Exception: Of any kind, if it cannot be fetched.
    """
    path = os.path.expanduser(str(path).removeprefix("local-dir:"))
    if path.startswith("hf-hub:"):
        path = download_from_hf(path.removeprefix("hf-hub:"), WEIGHTS)
    elif os.path.isdir(path):
        path = find_weights(path)
    scheme, _, name = path.partition("://")
    if scheme in _CATALOGUES:
        deprecated = mmengine_checkpoint.get_deprecated_model_names()
        path = _CATALOGUES[scheme]()[deprecated.get(name, name)]
    if not is_address(path):
        yield path
    elif _NAME_WITH_HASH.fullmatch(name := Path(urlparse(path).path).name):
        yield _download(path, name)
    else:
        with get_local_path(path) as local_path:
            yield str(local_path)


def is_address(path: str | os.PathLike) -> bool:
    """Whether a path is no local one."""
    return "://" in str(path)


def _download(address: str, name: str) -> str:
    folder = Path(torch.hub.get_dir(), "checkpoints")
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(folder / name), progress=False)
    return str(folder / name)
