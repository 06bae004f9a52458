"""The files around pickles and tensors: those of torch.save, new and old, and safetensors."""

import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from slide_mm.checkpoints.errors import CheckpointError
from slide_mm.checkpoints.rebuilding import Storage, storage_dtype
from slide_mm.checkpoints.unpickling import unpickle

# What torch.save wrote before version 1.6, and still does when asked to.
_OLD_MAGIC_NUMBER, _OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001
_CHUNK = 1 << 24


def read_file(path: str | os.PathLike) -> Any:
    """Read a checkpoint file into memory.

    Raises:
        CheckpointError: If it is no file, or holds what is no data.
        Exception: Of any kind, if it is damaged.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("is no file but a pipe or a device: check the path")
    with open(path, "rb") as file:
        head = file.read(9)
        file.seek(0)
        # A safetensors file begins with the length of its header, in 8 bytes, and the header.
        if head.endswith(b"{"):
            return safetensors.torch.load_file(path)
        if head.startswith(b"PK"):
            return _read_zip(file, status.st_size)
        return _read_old(file, status.st_size)


def _read_zip(file: IO[bytes], size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        (pickled,) = (name for name in records if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in records:
            raise CheckpointError(
                "is a program of TorchScript, not weights: save those of the model it was made of, "
                "by torch.save(model.state_dict(), PATH)"
            )
        _check_records(archive.infolist(), size)
        _check_byte_order(archive, records.get(f"{folder}byteorder"))

        def read(key: str, _: int) -> Tensor:
            record = records.pop(f"{folder}data/{key}")
            memory = torch.empty(record.file_size, dtype=torch.uint8)
            with archive.open(record) as stream:
                _read_into(stream, memory)
            return memory

        content = unpickle(io.BytesIO(archive.read(pickled)), _Storages(read).load)
        for record in records.values():  # Reading to the end compares its CRC.
            with archive.open(record) as stream:
                while stream.read(_CHUNK):
                    pass
    return content


def _check_records(records: list[zipfile.ZipInfo], size: int) -> None:
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not stored or sum(record.file_size for record in records) > size:
        raise CheckpointError(
            "is a compressed zip: unpack it; files of torch.save are not compressed"
        )
    if len({record.filename for record in records}) < len(records):
        raise ValueError("two records of one name")
    # torch.serialization.set_crc32_options(False) leaves them out.
    if not any(record.CRC for record in records):
        for record in records:
            record.CRC = None


def _check_byte_order(archive: zipfile.ZipFile, record: zipfile.ZipInfo | None) -> None:
    if record is not None and archive.read(record) != b"little":
        raise CheckpointError("was written on a big-endian machine: save it on another one")


def _read_old(file: IO[bytes], size: int) -> Any:
    if (unpickle(file), unpickle(file)) != (_OLD_MAGIC_NUMBER, _OLD_VERSION):
        raise ValueError("no checkpoint")
    if not unpickle(file)["little_endian"]:
        raise CheckpointError("was written on a big-endian machine: save it on another one")
    claimed = 0

    def reserve(_: str, num_bytes: int) -> Tensor:
        nonlocal claimed
        claimed += num_bytes
        if claimed > size:
            raise EOFError
        return torch.empty(num_bytes, dtype=torch.uint8)

    storages = _Storages(reserve)
    content = unpickle(file, storages.load)
    for key in unpickle(file):
        storage = storages.by_key.pop(key)
        (numel,) = struct.unpack("<q", file.read(8))
        if numel * storage.dtype.itemsize != len(storage.memory):
            raise EOFError
        _read_into(file, storage.memory)
    if storages.by_key:
        raise EOFError
    return content


class _Storages:
    """Storages by what a pickle has in their place.

    Args:
        read: Gives the memory of a key, of so many bytes.
    """

    def __init__(self, read: Callable[[str, int], Tensor]) -> None:
        self.read = read
        self.by_key: dict[str, Storage] = {}

    def load(self, place: Any) -> Storage:
        kind, storage_type, key, _, numel, *view = place
        if kind != "storage" or any(view):
            raise ValueError(f"no storage but {kind}")
        dtype = storage_dtype(storage_type)
        num_bytes = numel * dtype.itemsize
        if key not in self.by_key:
            self.by_key[key] = Storage(self.read(key, num_bytes), dtype)
        memory = self.by_key[key].memory
        if len(memory) != num_bytes:
            raise EOFError
        return Storage(memory, dtype)


def _read_into(file: IO[bytes], memory: Tensor) -> None:
    rest = memoryview(memory.numpy())
    while rest:
        count = file.readinto(rest[:_CHUNK])
        if not count:
            raise EOFError
        rest = rest[count:]
