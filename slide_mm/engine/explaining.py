"""Saying in one line what went wrong, where, and which part of a config asked for it."""

import re
import sys
import textwrap
from collections.abc import Iterator
from traceback import extract_tb, walk_tb
from types import FrameType
from typing import Any, NamedTuple

from slide_mm.engine.config import iter_nodes, type_name

_MAX_LENGTH = 400
# A call in the text that PyTorch makes of an exception in a loader's process.
_FRAME = re.compile(
    r'^ +File "(.+)", line (\d+), in .*\n(?: +(?!File ")(.*)\n)?(?: (?! *File ").*\n)*',
    flags=re.MULTILINE,
)
# Frames in these say where a mistake came out, not where it was made.
_FOREIGN = re.compile(rf"(?:torch|mmengine\.registry|{'|'.join(sys.stdlib_module_names)})(?:\.|$)")


def explain(error: BaseException, cfg: Any = None) -> str:
    """Say what an exception says, where it was raised and what asked for it.

    Args:
        error: The exception. What came out of a loader's process is told as if it came from here.
        cfg: The run's config, to look for the part that was being built or that was running.

    Returns:
        Such as ``train_dataloader.sampler (DefaultSampler): TypeError: got an unexpected keyword
        argument 'shufle' (in mmengine.registry.build_functions:123)``.
    """
    error = _from_hook(error)
    inner = read_loader_error(error)
    if inner:
        places = [(_module_of(path), line) for path, line, _ in inner.calls]
        kind, message = inner.kind, inner.message or inner.calls[-1][2]
    else:
        frames = walk_tb(error.__traceback__)
        places = [(frame.f_globals.get("__name__", "?"), line) for frame, line in frames]
        kind, message = type(error).__name__, _message_of(error)
    part = _find_part(error, cfg)
    line = f"{part}: " if part else ""
    line += f"{kind}: {textwrap.shorten(message, _MAX_LENGTH, placeholder=' ...')}"
    own = [place for place in places if not _FOREIGN.match(place[0])]
    for module, number in (own or places)[-1:]:
        line += f" (in {module}:{number})"
    return line


class LoaderError(NamedTuple):
    """An exception of a loader's process.

    ``calls`` are file, line and source of each, innermost last.
    """

    kind: str
    message: str
    calls: list[tuple[str, int, str]]


def read_loader_error(error: BaseException) -> LoaderError | None:
    """Find the exception of a loader's process in the one that stands for it here.

    Returns:
        None if there is no such exception.
    """
    text = f"{error}\n"
    frames = list(_FRAME.finditer(text))
    if "Original Traceback (most recent call last):" not in text or not frames:
        return None
    kind, _, message = " ".join(text[frames[-1].end() :].split()).partition(": ")
    calls = [(path, int(line), source or "") for path, line, source in _FRAME.findall(text)]
    return LoaderError(kind.rpartition(".")[2], message, calls)


def _from_hook(error: BaseException) -> BaseException:
    """MMEngine raises a TypeError of a hook anew, with less to see."""
    calls = [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)]
    is_new = isinstance(error, TypeError) and calls[-1:] == ["call_hook"]
    return error.__context__ or error if is_new else error


def _module_of(path: str) -> str:
    # Some modules' own __getattr__ would import others.
    modules = [(name, vars(x)) for name, x in list(sys.modules.items()) if hasattr(x, "__dict__")]
    return next((name for name, values in modules if values.get("__file__") == path), path)


def _message_of(error: BaseException) -> str:
    # The message of a KeyError comes in quotes, which a key's name needs and a sentence doesn't.
    first = error.args[0] if error.args else ""
    message = first if isinstance(first, str) and " " in first else str(error)
    if not message and error.__traceback__:
        message = extract_tb(error.__traceback__)[-1].line or ""  # The condition of an assert.
    return message


def _find_part(error: BaseException, cfg: Any) -> str | None:
    """The part of a config that was being built or that was running, innermost first."""
    if cfg is None:
        return None
    nodes = list(iter_nodes(dict(cfg)))
    for frame, _ in reversed(list(walk_tb(error.__traceback__))):
        for name, text in _asked_for(frame):
            keys = [key for key, node in nodes if type_name(node) == name]
            same = [key for key, node in nodes if key in keys and repr(node) == text]
            found = same or keys
            # The same type in several places: its name has to do.
            if found:
                return f"{found[0]} ({name})" if same or len(found) == 1 else name
    return None


def _asked_for(frame: FrameType) -> Iterator[tuple[str, str | None]]:
    """Name the type that a frame builds, with its config as text, or whose method it is."""
    values = frame.f_locals
    if frame.f_code.co_name == "build_from_cfg" and type_name(values.get("cfg")):
        yield type_name(values["cfg"]), repr(values["cfg"])
    elif "self" in values:
        yield type(values["self"]).__name__, None
