"""What a pickle's classes and functions become: tensors, plain values, or nothing of use."""

import math
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from slide_mm.checkpoints.errors import CheckpointError

_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Untyped": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}
_STORAGE_NAME = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
_NUMBERS_OF_NUMPY = re.compile(r"[biufcSU][1-9]\d{0,8}")
# An expanded tensor holds more elements than its storage, up to some position indices; not more.
_MAX_EXPANDED = 1 << 24
_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
# Classes whose methods MMEngine keeps, and puts there anew when it resumes.
_WITH_METHODS = (_HISTORY, "mmengine.optim.scheduler.")
# Of what trainings leave beside tensors, nothing is of use: settings, times, paths, random states.
_LEFTOVERS = re.compile(
    r"argparse\.Namespace"
    r"|builtins\.(?:bytearray|complex|dict|float|int|list|object|range|slice|str|tuple)"
    r"|datetime\.\w+"
    r"|mmengine\.(?:logging\.history_buffer\.HistoryBuffer(?:\.\w+)?|optim\.scheduler\.[\w.]+)"
    r"|numpy\.(?:ndarray|dtypes\.\w+|bool_?|float\d+|int\d+|uint\d+)"
    r"|omegaconf\.[\w.]+|typing\.\w+"
    r"|pathlib\.(?:_local\.)?(?:Pure)?(?:Posix|Windows)?Path"
    r"|torch\.(?:device|Tensor|nn\.parameter\.\w+|serialization\._get_layout|per_\w+_affine\w*)"
    r"|uuid\.(?:UUID|SafeUUID)"
)


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names."""

    path: str


class Leftover:
    """Takes the place of an object that isn't wanted."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Unusable:
    """Takes the place of a tensor that is no plain one.

    Attributes:
        kind: What it is instead.
    """

    kind: str


@dataclass(frozen=True, slots=True)
class Storage:
    """The memory of tensors.

    Attributes:
        memory: (bytes,), uint8.
        dtype: Of the numbers in it.
    """

    memory: Tensor
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class _Unbuilt(Leftover):
    """An object whose state comes later."""

    build: Callable[[Any], Any]


def is_lifeless(value: Any) -> bool:
    """Whether something stands for an object that could not be rebuilt."""
    return isinstance(value, Leftover | Global | Unusable | Storage)


def require_known(path: str) -> None:
    """Refuse a class or function that is neither a part of tensors nor left by trainings."""
    patterns = (_LEFTOVERS, _STORAGE_NAME)
    if path in _MAKERS or _dtype(path) or any(pattern.fullmatch(path) for pattern in patterns):
        return
    raise CheckpointError(
        f"holds {path[:100]}, which is neither a tensor nor a leftover of a training: it could run "
        "code, so the file is not read; where it comes from, save the weights alone, by "
        "torch.save(model.state_dict(), PATH)"
    )


def make(path: str, args: tuple[Any, ...]) -> Any:
    """Make what a pickle would get by calling a class or function."""
    maker = _MAKERS.get(path)
    return maker(*args) if maker else Leftover()


def build(target: Any, state: Any) -> Any:
    """Make what a pickle would get by giving an object its state."""
    if isinstance(target, _Unbuilt):
        return target.build(state)
    if isinstance(target, OrderedDict) and isinstance(state, Mapping):
        # Versions of modules, by which they know older names of their weights.
        metadata = state.get("_metadata")
        target._metadata = metadata if isinstance(metadata, Mapping) else OrderedDict()
    elif not isinstance(target, Leftover | dict):
        raise CheckpointError(
            f"changes a {type(target).__name__}, which no training does: it could run code, so "
            "the file is not read"
        )
    return target


def storage_dtype(storage_type: Any) -> torch.dtype:
    """What a storage holds.

    Args:
        storage_type: The name of its class in a pickle.
    """
    return _STORAGES[_STORAGE_NAME.fullmatch(storage_type.path)[1]]


def _dtype(path: str) -> torch.dtype | None:
    dtype = getattr(torch, path.removeprefix("torch."), None) if path.startswith("torch.") else None
    return dtype if isinstance(dtype, torch.dtype) else None


def _tensor(
    storage: Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Mapping[str, bool] | None = None,
) -> Tensor | Unusable:
    if any((metadata or {}).values()):
        return Unusable("a conjugate or negative view")
    if storage.dtype in (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4):
        return Unusable("quantised")
    flat = storage.memory.view(storage.dtype)
    size, stride = tuple(size), tuple(stride)
    if not all(type(x) is int and x >= 0 for x in (offset, *size, *stride)):
        raise TypeError(f"a tensor of size {size}, stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numel = math.prod(size)
    if numel and (last >= len(flat) or numel > max(len(flat), _MAX_EXPANDED)):
        raise CheckpointError(
            f"holds a tensor of size {size} in a storage of {len(flat)} numbers: it is damaged"
        )
    return flat.as_strided(size, stride, offset)


def _tensor_of_new_dtype(
    storage: Storage, offset: int, size: Any, stride: Any, _: bool, hooks: Any, dtype: Global, *rest
) -> Tensor | Unusable:
    storage = Storage(storage.memory, _dtype(dtype.path))
    return _tensor(storage, offset, size, stride, False, hooks, *rest)


def _tensor_of_type(function: Global, _: Global, args: tuple[Any, ...], *state: Any) -> Any:
    return make(function.path, args)


def _unusable(kind: str) -> Callable[..., Unusable]:
    return lambda *_: Unusable(kind)


def _method(owner: Global, name: str) -> Leftover:
    if isinstance(owner, Global) and owner.path.startswith(_WITH_METHODS):
        return Leftover()
    raise CheckpointError(
        f"asks an object for its {name}, which no training does: it could run code, so the file is "
        "not read"
    )


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(encoding)
    return text.encode("latin1")


def _dict(*args: Any) -> dict[Any, Any]:
    return dict(args[0]) if args and isinstance(args[0], dict) else {}


def _set(items: list[Any] = ()) -> set[Any]:
    return {item for item in items if isinstance(item, str | int | float)}


def _deque(items: Any = (), max_length: int | None = None) -> deque:
    return deque(tuple(items), max_length)


def _numpy_dtype(name: Any, *_: Any) -> Leftover:
    if not isinstance(name, str) or not _NUMBERS_OF_NUMPY.fullmatch(name):
        return Leftover()
    return _Unbuilt(lambda state: Leftover() if state[1] == ">" else np.dtype(name))


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (1,))[0] if isinstance(dtype, np.dtype) else Leftover()


def _build_array(state: tuple[Any, ...]) -> np.ndarray | Leftover:
    _, shape, dtype, is_fortran, data = state
    if not isinstance(dtype, np.dtype):
        return Leftover()
    return _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: Any, dtype: np.dtype, shape: Any, order: str = "C") -> np.ndarray:
    return np.frombuffer(bytearray(data), dtype).reshape(tuple(shape), order=order)


def _build_history(state: Mapping[str, Any]) -> HistoryBuffer:
    keys = ("_log_history", "_count_history", "max_length")
    return HistoryBuffer(*(state[key] for key in keys))


_MAKERS: dict[str, Callable[..., Any]] = {
    "builtins.getattr": _method,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "_codecs.encode": _bytes,
    "collections.Counter": lambda *args: Counter(_dict(*args)),
    "collections.OrderedDict": lambda *args: OrderedDict(_dict(*args)),
    "collections.defaultdict": lambda *_: {},
    "collections.deque": _deque,
    **dict.fromkeys(
        (
            "addict.addict.Dict",
            "easydict.EasyDict",
            "mmcv.utils.config.ConfigDict",
            "mmengine.config.config.ConfigDict",
            "yacs.config.CfgNode",
        ),
        _dict,
    ),
    _HISTORY: lambda *_: _Unbuilt(_build_history),
    "numpy.dtype": _numpy_dtype,
    # Below numpy.core before NumPy 2.
    **{
        f"numpy.{core}.{name}": maker
        for core in ("core", "_core")
        for name, maker in {
            "multiarray._reconstruct": lambda *_: _Unbuilt(_build_array),
            "multiarray.scalar": _numpy_scalar,
            "numeric._frombuffer": _array,
        }.items()
    },
    "torch.Size": lambda sizes: torch.Size(sizes),
    "torch._tensor._rebuild_from_type": _tensor_of_type,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_new_dtype,
    "torch._utils._rebuild_meta_tensor_no_storage": _unusable("without values, on device meta"),
    "torch._utils._rebuild_nested_tensor": _unusable("nested"),
    "torch._utils._rebuild_qtensor": _unusable("quantised"),
    "torch._utils._rebuild_sparse_csr_tensor": _unusable("sparse"),
    "torch._utils._rebuild_sparse_tensor": _unusable("sparse"),
    "torch._utils._rebuild_wrapper_subclass": _unusable("of a class of its own"),
}
