"""Checkpoints that nobody should trust, drawn at random."""

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

# What an attacker would like to call, and what a reader may think harmless.
CALLABLES = (  # noqa: SIM905
    "os.system posix.system subprocess.Popen subprocess.getoutput builtins.eval builtins.exec "
    "builtins.__import__ builtins.getattr builtins.open builtins.compile builtins.map "
    "operator.attrgetter operator.methodcaller operator.itemgetter functools.partial "
    "functools.reduce importlib.import_module runpy.run_path pty.spawn webbrowser.open "
    "ctypes.CDLL shutil.rmtree codecs.open _codecs.encode torch.load torch.hub.load torch.jit.load "
    "torch.serialization.load torch.package.PackageImporter torch.ops.load_library "
    "torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2 torch._utils._rebuild_parameter "
    "torch._utils._rebuild_sparse_tensor torch._utils._rebuild_qtensor "
    "torch._utils._rebuild_meta_tensor_no_storage torch._tensor._rebuild_from_type_v2 "
    "torch.storage._load_from_bytes torch.FloatStorage torch.Size torch.device torch.Tensor "
    "collections.OrderedDict collections.defaultdict collections.Counter collections.deque "
    "argparse.Namespace argparse.FileType pathlib.PosixPath pathlib.Path.unlink "
    "numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar numpy.ndarray numpy.dtype "
    "numpy.load numpy.fromfile datetime.datetime datetime.timedelta mmengine.fileio.load "
    "mmengine.config.Config.fromfile mmengine.config.config.ConfigDict "
    "mmengine.logging.history_buffer.HistoryBuffer yacs.config.CfgNode "
    "logging.config._resolve unittest.mock._importer pydoc.locate pkgutil.resolve_name "
    "sys.modules os.environ torch.nn.Module torch.float32 slide_mm.engine.train"
).split()


def hostile_pickle(rng: random.Random, canary: Path) -> bytes:
    """A dict of weights and a few values that call something when they are unpickled naively."""
    program = [b"\x80", bytes([rng.choice((2, 3, 4))]), b"}", b"("]
    for index in range(rng.randint(1, 4)):
        program += [_text(rng.choice(("state_dict", "model", "meta", "args", f"x{index}")))]
        program += _value(rng, canary, depth=rng.randint(1, 4))
    return b"".join([*program, b"u."])


def _value(rng: random.Random, canary: Path, depth: int) -> list[bytes]:
    """Opcodes that leave one value on the stack."""
    if depth == 0:
        return [_plain(rng, canary)]
    inner = lambda: _value(rng, canary, depth - 1)  # noqa: E731
    name = rng.choice(CALLABLES)
    module, _, attribute = name.rpartition(".")
    old = f"c{module}\n{attribute}\n".encode()
    new = _text(module) + _text(attribute) + b"\x93"
    called = rng.choice((old, new))
    arguments = [b"(", *(x for _ in range(rng.randint(0, 2)) for x in inner()), b"t"]
    state = rng.choice((inner(), [b"}", b"(", _text("__class__"), *inner(), b"u"]))
    kind = rng.choice(("reduce", "newobj", "newobj_ex", "inst", "obj", "build", "global", "list"))
    if kind == "reduce":
        return [called, *arguments, b"R"]
    if kind == "newobj":
        return [called, *arguments, b"\x81"]
    if kind == "newobj_ex":
        return [called, *arguments, b"}", b"\x92"]
    if kind == "inst":
        return [b"(", *inner(), f"i{module}\n{attribute}\n".encode()]
    if kind == "obj":
        return [b"(", called, *inner(), b"o"]
    if kind == "build":
        return [called, *arguments, b"R", *state, b"b"]
    if kind == "global":
        return [called, *state, b"b"]
    return [b"]", b"(", *inner(), *inner(), b"e"]


def _plain(rng: random.Random, canary: Path) -> bytes:
    command = f"touch {canary}"
    return rng.choice(
        (
            _text(command),
            _text(f"__import__('os').system({command!r})"),
            _text(str(canary)),
            _text("w"),
            _text("system"),
            _text("__globals__"),
            b"N",
            b"K\x01",
            b"J" + struct.pack("<i", 2**31 - 1),
            b"G" + struct.pack(">d", float("nan")),
            b"}",
            b"]",
            b")",
            b"\x88",
            b"("
            + _text("storage")
            + b"ctorch\nFloatStorage\n"
            + _text("0")
            + _text("cpu")
            + b"K\x04tQ",
        )
    )


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def in_zip(program: bytes) -> bytes:
    """A file of torch.save as it is since PyTorch 1.6."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def in_row(program: bytes) -> bytes:
    """A file of torch.save as it was before: pickles in a row."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(x, protocol=2) for x in head) + program + pickle.dumps([], 2)


def hostile_file(rng: random.Random, canary: Path) -> bytes:
    """A hostile pickle in one of the containers, or as it is."""
    return rng.choice((in_zip, in_row, bytes))(hostile_pickle(rng, canary))


Edit = Callable[[dict[str, Tensor], str], None]


def _set(make: Callable[[Tensor], object]) -> Edit:
    def edit(weights: dict[str, Tensor], name: str) -> None:
        weights[name] = make(weights[name])

    return edit


def _fill(value: float) -> Edit:
    return _set(lambda tensor: torch.full_like(tensor, value))


UNFIT: dict[str, Edit] = {
    "nan": _fill(float("nan")),
    "inf": _fill(float("inf")),
    "too large": _set(lambda x: torch.full_like(x, 1e300, dtype=torch.float64)),
    "integers": _set(lambda x: x.round().int()),
    "complex": _set(lambda x: x.to(torch.complex64)),
    "sparse": _set(lambda x: x.to_sparse()),
    "meta": _set(lambda x: x.to("meta")),
    "quantised": _set(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)),
    "another shape": _set(lambda x: x.new_zeros(x.shape[0] + 1, *x.shape[1:])),
    "text": _set(lambda x: "weights"),
    "missing": lambda weights, name: weights.pop(name),
    "renamed": lambda weights, name: weights.update({f"{name}x": weights.pop(name)}),
    "number for a name": lambda weights, name: weights.update({7: weights.pop(name)}),
}


def unfit_weights(rng: random.Random, weights: Mapping[str, Tensor]) -> tuple[str, dict]:
    """What is wrong, and a checkpoint where that is wrong with one weight."""
    weights = dict(weights)
    names = [name for name, x in weights.items() if x.is_floating_point() and x.ndim > 0]
    what, name = rng.choice(list(UNFIT)), rng.choice(names)
    UNFIT[what](weights, name)
    return f"{name}: {what}", {"state_dict": weights}


def wrapped_weights(rng: random.Random, weights: Mapping[str, Tensor]) -> dict:
    """The same weights, as other people's programs save them."""
    checkpoint = dict(weights)
    if rng.random() < 0.3:
        dtype = rng.choice((torch.float64, torch.float32))
        checkpoint = {k: x.to(dtype) if x.is_floating_point() else x for k, x in weights.items()}
    for _ in range(rng.randint(0, 2)):
        prefix = rng.choice(("module.", "_orig_mod.", "module._orig_mod."))
        checkpoint = {f"{prefix}{name}": tensor for name, tensor in checkpoint.items()}
    for _ in range(rng.randint(0, 3)):
        key = rng.choice(("state_dict", "model", "state_dict_ema", "model_ema", "teacher"))
        checkpoint = {key: checkpoint}
        if rng.random() < 0.5:
            checkpoint |= {"epoch": 3, "args": {"lr": 0.1}, "optimizer": {"state": {}}}
    return checkpoint


def damage(rng: random.Random, content: bytes) -> bytes:
    """A file as a full disk, a broken download or a bad disk leaves it."""
    content = bytearray(content)
    place = rng.randrange(len(content))
    kind = rng.choice(("cut", "flip", "zeros", "insert", "empty", "head"))
    if kind == "cut":
        del content[place:]
    elif kind == "flip":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif kind == "insert":
        content[place:place] = rng.randbytes(rng.randint(1, 64))
    elif kind == "empty":
        content.clear()
    else:
        del content[:place]
    return bytes(content)
