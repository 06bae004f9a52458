"""Pickles that run code when they are unpickled, drawn at random, and the files around them."""

import io
import pickle
import struct
import zipfile

import torch

COMMAND = "touch canary"
SCRIPT = "open('canary', 'w').close()"
# What makes the canary when it is called.
CALLS = (
    ("os", "system", (COMMAND,)),
    ("posix", "system", (COMMAND,)),
    ("subprocess", "getoutput", (COMMAND,)),
    ("builtins", "eval", (SCRIPT,)),
    ("builtins", "exec", (SCRIPT,)),
    ("builtins", "open", ("canary", "w")),
    ("__builtin__", "eval", (SCRIPT,)),
    ("pathlib", "Path.touch", ("canary",)),
    ("os", "mkdir", ("canary",)),
    ("io", "FileIO", ("canary", "w")),
    ("timeit", "timeit", (SCRIPT, "pass", 0.0, 1)),
    ("numpy", "save", ("canary", 1)),
    ("numpy", "memmap", ("canary", "float32", "w+", 0, (1,))),
    ("torch", "save", (1, "canary")),
    ("torch", "load", ("canary",)),
    ("torch.hub", "load", ("canary", "model")),
    ("torch.serialization", "load", ("canary",)),
    ("torch.storage", "_load_from_bytes", (b"canary",)),
    ("functools", "partial", (1,)),
    ("operator", "attrgetter", ("system",)),
    ("operator", "methodcaller", ("system", COMMAND)),
    ("importlib", "import_module", ("antigravity",)),
    ("builtins", "__import__", ("antigravity",)),
    ("builtins", "compile", (SCRIPT, "", "exec")),
    ("types", "CodeType", ()),
    ("pickle", "loads", (b"canary",)),
    ("numpy.core.multiarray", "fromfile", ("canary",)),
    ("mmengine.fileio.io", "load", ("canary.pkl",)),
    ("mmengine.config.config", "Config.fromfile", ("canary.py",)),
    ("webbrowser", "open", ("canary",)),
)
# Of CALLS, those that make it at once, by every instruction that calls functions.
EFFECTIVE = CALLS[:4]
FUNCTIONS = ("GLOBAL", "STACK_GLOBAL", "EXT")
WAYS = ("REDUCE", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "BUILD", "getattr", "nested")
EXTENSION = 0x7B


def draw_pickle(random, call=None, way=None):
    """The instructions of a dict of weights with a call somewhere in it."""
    module, name, args = call or random.choice(CALLS)
    way = way or random.choice(WAYS)
    hostile = _call(random, way, module, name, args)
    for _ in range(random.randrange(4)):
        hostile = random.choice((_in_list, _in_tuple, _in_dict, _in_allowed, _in_memo))(hostile)
    return b"\x80\x02}(X\x06\x00\x00\x00weightK\x01X\x03\x00\x00\x00key" + hostile + b"u."


def _text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _plain(value):
    return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")


def _arguments(args):
    return b"(" + b"".join(_argument(arg) for arg in args) + b"t"


def _argument(arg):
    if isinstance(arg, bytes):
        return b"B" + struct.pack("<I", len(arg)) + arg
    return _text(arg) if isinstance(arg, str) else _plain(arg)


def _function(random, module, name):
    way = random.choice(FUNCTIONS)
    if way == "STACK_GLOBAL" or "." in name:
        return _text(module) + _text(name) + b"\x93"
    if way == "EXT":
        return b"\x82" + bytes([EXTENSION])
    return f"c{module}\n{name}\n".encode()


def _call(random, way, module, name, args):
    function, arguments = _function(random, module, name), _arguments(args)
    items = b"".join(_argument(arg) for arg in args)
    return {
        "REDUCE": function + arguments + b"R",
        "OBJ": b"(" + function + items + b"o",
        "INST": b"(" + items + f"i{module}\n{name}\n".encode(),
        "NEWOBJ": function + arguments + b"\x81",
        "NEWOBJ_EX": function + arguments + b"}\x92",
        "BUILD": _build(random, function, arguments),
        "getattr": _chain(args),
        "nested": b"cbuiltins\ngetattr\n"
        + function
        + _text("__call__")
        + b"\x86R"
        + arguments
        + b"R",
    }[way]


def _build(random, function, arguments):
    """State given to a class or function that is allowed, so that it calls another one."""
    target = random.choice(
        (
            b"cargparse\nNamespace\n",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ccollections\nOrderedDict\n",
            b"cmmengine.logging.history_buffer\nHistoryBuffer\n",
            b"cnumpy\ndtype\n",
        )
    )
    attribute = random.choice(("__call__", "__init__", "__setstate__", "__defaults__", "append"))
    state = b"N}" + _text(attribute) + function + b"s\x86"
    return target + state + b"b" + arguments + b"R"


def _chain(args):
    """From an allowed class to the modules that its methods know."""
    getattr_ = b"cbuiltins\ngetattr\n"
    step = getattr_ + b"cargparse\nNamespace\n" + _text("__init__") + b"\x86R"
    for name in ("__globals__", "get"):
        step = getattr_ + step + _text(name) + b"\x86R"
    module = step + _text("_sys") + b"\x85R"
    return getattr_ + module + _text("exit") + b"\x86R" + _arguments(args) + b"R"


def _in_list(item):
    return b"](" + item + b"e"


def _in_tuple(item):
    return item + b"\x85"


def _in_dict(item):
    return b"}" + _text("key") + item + b"s"


def _in_allowed(item):
    return b"ccollections\nOrderedDict\n)R" + _text("key") + item + b"s"


def _in_memo(item):
    return item + b"r\xff\x00\x00\x000j\xff\x00\x00\x00"


def as_zip(pickled, path):
    """A file as torch.save writes it since version 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


def as_old(pickled, path):
    """A file as torch.save wrote it before."""
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    start = content.index(b".", content.index(b"little_endian")) + 1
    path.write_bytes(content[:start] + pickled + pickle.dumps([], 2))


def as_pickle(pickled, path):
    """A file of the pickle module."""
    path.write_bytes(pickled)


CONTAINERS = (as_zip, as_old, as_pickle)
