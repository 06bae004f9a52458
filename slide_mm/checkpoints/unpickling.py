"""Pickles read as data: no class or function that a file names is looked up or called.

A pickle is a program: its instructions name functions of any module and call them. Here they are
carried out one by one on our own stack. What a file names stays a name, and where it is called our
own table says what plain value that makes.
"""

import pickletools
from collections import deque
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from slide_mm.checkpoints.errors import CheckpointError
from slide_mm.checkpoints.rebuilding import Global, Leftover, build, make, require_known

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES"),
    *("UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_IGNORED = {"PROTO", "FRAME"}
# A tuple in a tuple can take 2 ** 60 steps to hash.
_KEYS = (str, int, float, bytes, type(None), np.generic, Global)


def unpickle(file: IO[bytes], load_storage: Callable[[Any], Any] | None = None) -> Any:
    """Read a pickle up to its end, of any protocol.

    Args:
        file: Where it begins.
        load_storage: Makes a storage of what PyTorch has written in its place.

    Raises:
        CheckpointError: If it names or does what no training leaves.
        Exception: Of any kind, if it is damaged.
    """
    return _Unpickler(load_storage).run(file)


class _Unpickler:
    def __init__(self, load_storage: Callable[[Any], Any] | None) -> None:
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # Stacks below the marks.
        self.memo: dict[int, Any] = {}
        self.places: dict[int, list[int]] = {}  # In the memo, of an object's id.

    def run(self, file: IO[bytes]) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _CONTAINERS:
                self.stack.append(_CONTAINERS[name]())
            elif name == "STOP":
                return self.stack.pop()
            elif name not in _IGNORED:
                self.carry_out(name, argument)
        raise EOFError

    def carry_out(self, name: str, argument: Any) -> None:
        instruction = _INSTRUCTIONS.get(name)
        if instruction is None:
            raise CheckpointError(f"holds the pickle instruction {name}, which no PyTorch writes")
        instruction(self, argument)

    def push(self, item: Any) -> None:
        self.stack.append(item)

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    def put(self, index: Any) -> None:
        index = len(self.memo) if index is None else int(index)
        self.memo[index] = self.stack[-1]
        self.places.setdefault(id(self.stack[-1]), []).append(index)

    def make_tuple(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_check_key, items))
        elif isinstance(target, list | deque):
            target.extend(items)
        elif not isinstance(target, Leftover):
            raise TypeError

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(_pairs(items))
        elif not isinstance(target, Leftover):
            raise TypeError

    def name(self, path: str) -> None:
        module, _, name = path.partition(" ")
        # PyTorch pickles as Python 2 did.
        path = f"{module.replace('__builtin__', 'builtins')}.{name}"
        require_known(path)
        self.stack.append(Global(path))

    def name_from_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module} {name}")

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise CheckpointError(
                f"calls a {type(function).__name__}, which no training does: it could run code, "
                "so the file is not read"
            )
        self.stack.append(make(function.path, args))

    def reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.call(function, args)

    def reduce_with_keywords(self, _: Any) -> None:
        self.stack.pop()  # Only classes that are left over take any.
        self.reduce(None)

    def instantiate(self, _: Any) -> None:
        function, *args = self.pop_to_mark()
        self.call(function, tuple(args))

    def instantiate_name(self, path: str) -> None:
        args = self.pop_to_mark()
        self.name(path)
        self.call(self.stack.pop(), tuple(args))

    def build(self, _: Any) -> None:
        """Give an object its state: what is made of both takes its place, in the memo too."""
        state, target = self.stack.pop(), self.stack.pop()
        built = build(target, state)
        self.stack.append(built)
        if built is not target:
            for index in self.places.pop(id(target), ()):
                if self.memo[index] is target:
                    self.memo[index] = built

    def load_persistent(self, _: Any) -> None:
        if self.load_storage is None:
            raise ValueError("a storage outside of a checkpoint")
        self.stack.append(self.load_storage(self.stack.pop()))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(map(_check_key, items[::2]), items[1::2], strict=True))


def _check_key(key: Any) -> Any:
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, _KEYS) for part in parts):
        raise CheckpointError(f"holds a dict with a {type(key).__name__} as a key")
    return key


_INSTRUCTIONS: dict[str, Callable[[_Unpickler, Any], None]] = {
    "MARK": _Unpickler.mark,
    "POP": _Unpickler.pop,
    "POP_MARK": lambda self, _: self.pop_to_mark() and None,
    "DUP": lambda self, _: self.stack.append(self.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Unpickler.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Unpickler.put),
    "TUPLE1": lambda self, _: self.make_tuple(1),
    "TUPLE2": lambda self, _: self.make_tuple(2),
    "TUPLE3": lambda self, _: self.make_tuple(3),
    "TUPLE": lambda self, _: self.push(tuple(self.pop_to_mark())),
    "LIST": lambda self, _: self.push(self.pop_to_mark()),
    "DICT": lambda self, _: self.push(_pairs(self.pop_to_mark())),
    "FROZENSET": lambda self, _: self.push(frozenset(map(_check_key, self.pop_to_mark()))),
    "APPEND": lambda self, _: self.append([self.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda self, _: self.append(self.pop_to_mark())),
    "SETITEM": lambda self, _: self.set_items([self.stack.pop(), self.stack.pop()][::-1]),
    "SETITEMS": lambda self, _: self.set_items(self.pop_to_mark()),
    "GLOBAL": _Unpickler.name,
    "STACK_GLOBAL": _Unpickler.name_from_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Unpickler.reduce),
    "NEWOBJ_EX": _Unpickler.reduce_with_keywords,
    "OBJ": _Unpickler.instantiate,
    "INST": _Unpickler.instantiate_name,
    "BUILD": _Unpickler.build,
    "BINPERSID": _Unpickler.load_persistent,
}
