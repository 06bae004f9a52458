"""Checkpoint files: tensors are read, code is not."""

import os
import pickle
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from mmengine.fileio import get_local_path
from torch import Tensor

# Weights averaged over the training come first, as in timm and in the code of Slide-Swin's authors.
_WEIGHT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Of what trainings leave beside tensors (settings, histories of losses), nothing is called.
_LEFTOVERS = {
    "_codecs.encode",
    "argparse.Namespace",
    *(f"builtins.{name}" for name in ("dict", "getattr", "list", "set", "slice", "tuple")),
    *(f"collections.{name}" for name in ("Counter", "defaultdict", "deque")),
    *(f"datetime.{name}" for name in ("datetime", "timedelta")),
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
    # Below numpy.core before NumPy 2.
    *(f"numpy.core.multiarray.{name}" for name in ("_reconstruct", "scalar")),
    *(f"numpy._core.multiarray.{name}" for name in ("_reconstruct", "scalar")),
    "pathlib.PosixPath",
    "yacs.config.CfgNode",
}
_TENSOR_PARTS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    *(f"torch._utils._rebuild_{part}" for part in ("parameter", "tensor", "tensor_v2")),
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint file into memory, on the CPU, without running any code from it.

    Of a file that PyTorch's own ``weights_only`` refuses, tensors and plain values are read, and
    what trainings leave beside them (settings, histories of losses) becomes lifeless dicts.

    Args:
        path: A file of ``torch.save`` or safetensors: a local one, or an address that
            ``mmengine.fileio`` knows.

    Raises:
        CheckpointError: If the file doesn't exist, is damaged, holds code, or holds no dict.
    """
    try:
        with get_local_path(os.path.expanduser(path)) as local_path:
            checkpoint = _load(local_path)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path} {error}") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else "is a folder"
        raise CheckpointError(f"checkpoint {path} {problem}: check the path") from error
    except Exception as error:  # Unpickling damaged bytes can raise anything.
        raise CheckpointError(
            f"checkpoint {path} ({_size(path)}) cannot be read: it is cut off, damaged or no "
            "checkpoint of PyTorch or safetensors; copy it again or give an earlier one"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}: give a file with a state_dict"
        )
    return checkpoint


def get_state_dict(checkpoint: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Take the weights out of a checkpoint.

    Args:
        checkpoint: A training checkpoint with its weights under ``state_dict`` or ``model``, or
            averaged ones under ``state_dict_ema`` or ``model_ema``; or the weights themselves.
        prefix: Take only the weights below this name, such as ``'backbone.'``, and cut it off.

    Returns:
        Tensors by name, without the ``module.`` that a distributed wrapper adds.
    """
    entries = (checkpoint.get(key) for key in _WEIGHT_KEYS)
    weights = next((entry for entry in entries if isinstance(entry, Mapping)), checkpoint)
    names = {name: name.removeprefix("module.") for name in weights}
    return {
        names[name].removeprefix(prefix): value
        for name, value in weights.items()
        if isinstance(value, Tensor) and names[name].startswith(prefix)
    }


def _load(path: str | os.PathLike) -> Any:
    with open(path, "rb") as file:
        # A safetensors file begins with the length of its header, in 8 bytes, and the header.
        is_safetensors = file.read(9).endswith(b"{")
    if is_safetensors:
        return safetensors.torch.load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_TensorPickle)


class _StandIn(dict):
    """Takes the place of an object that isn't wanted, and accepts what unpickling does to it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    extend = append


class _TensorPickle:
    """A replacement of the ``pickle`` module for ``torch.load`` that calls no foreign code."""

    class Unpickler(pickle.Unpickler):
        """Makes tensors, plain values and stand-ins, and refuses everything else."""

        def find_class(self, module: str, name: str) -> Any:
            module = module.replace("__builtin__", "builtins")  # PyTorch pickles as Python 2 does.
            path = f"{module}.{name}"
            is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if is_dtype or path in _TENSOR_PARTS:
                return super().find_class(module, name)
            if path in _LEFTOVERS:
                return _StandIn
            raise CheckpointError(
                f"holds {path}, which is neither a tensor nor a leftover of a training: it could "
                "run code, so the file is not read; where it comes from, save the weights alone, "
                "by torch.save(model.state_dict(), PATH)"
            )

    @classmethod
    def load(cls, file: Any, **options: Any) -> Any:
        return cls.Unpickler(file, **options).load()


def _size(path: str | os.PathLike) -> str:
    return f"{os.path.getsize(path)} bytes" if os.path.isfile(path) else "remote"
