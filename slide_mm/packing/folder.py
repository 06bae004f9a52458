"""A folder that is written whole or not at all, and tells nothing of this machine."""

import getpass
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import slide_mm
from slide_mm.checkpoints.writing import write_folder_atomically
from slide_mm.engine.outputs import make_folder
from slide_mm.engine.reporting import ConfigError
from slide_mm.packing.card import CARD

_TEXTS = (".py", ".json", ".md")


def check_new(out: str | Path) -> Path:
    """Refuse a folder to write that isn't new or empty, before any work.

    Raises:
        ConfigError: If there is something.
    """
    out = Path(os.path.abspath(out))
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"--out is {out}, which is there already: name a new folder")
    return out


@contextmanager
def new_folder(out: Path, *private: str) -> Iterator[tuple[Path, list[str]]]:
    """Give a folder to write to, which becomes ``out`` if nothing went wrong and it may be seen.

    Args:
        out: Of :func:`check_new`.
        *private: Paths that its texts may not hold, beside those of this user.

    Yields:
        The folder, and lines about what its owner should look at, which are there in the end.

    Raises:
        ConfigError: If it cannot be written, or holds a private path.
    """
    make_folder(out.parent)
    notes: list[str] = []
    with write_folder_atomically(out) as folder:
        yield folder, notes
        for path in folder.iterdir():
            shutil.copymode(folder / CARD, path)  # safetensors writes for its owner alone.
        _require_no_paths(folder, [*private, os.path.expanduser("~"), os.getcwd()])
        notes += _find_words(folder)


def _require_no_paths(folder: Path, private: list[str]) -> None:
    clone = str(Path(slide_mm.__file__).parents[1])
    for path in filter(None, [clone, *private]):
        pattern = rf"(?<![\w./-]){re.escape(os.path.abspath(path).rstrip('/'))}(?!\w)"
        for name, text in _read_texts(folder):
            if path != "/" and re.search(pattern, text):
                raise ConfigError(
                    f"{name} would hold the path {path}: leave it out of a config that you give "
                    "with --config"
                )


def _find_words(folder: Path) -> list[str]:
    words = {socket.gethostname()}
    with suppress(OSError, KeyError, ImportError):  # Users without a name.
        words.add(getpass.getuser())
    return [
        f"{name} has the word {word}, which names this user or this machine, too"
        for name, text in _read_texts(folder)
        for word in sorted(words)
        if re.search(rf"\b{re.escape(word)}\b", text)
    ]


def _read_texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir()):
        if path.suffix in _TEXTS:
            yield path.name, path.read_text(encoding="utf-8")
