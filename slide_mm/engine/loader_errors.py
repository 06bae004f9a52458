"""What loaders' processes raise: PyTorch hands it over as a text around the real exception."""

import re
from typing import NamedTuple

_FRAME = re.compile(
    r'^ +File "(.+)", line (\d+), in .*\n(?: +(?!File ")(.*)\n)?(?: (?! *File ").*\n)*',
    flags=re.MULTILINE,
)


class LoaderError(NamedTuple):
    """An exception of a loader's process.

    Attributes:
        kind: Name of its class.
        message: What it says.
        calls: File, line and source of each call, innermost last.
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


def plain_message(error: BaseException) -> str:
    """What an exception says; out of a loader's process, without the text around it."""
    inner = read_loader_error(error)
    return inner.message if inner else str(error)
