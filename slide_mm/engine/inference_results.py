"""What inference leaves behind: a ``results.json`` that names the pictures that exist."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slide_mm.engine.footprint import Footprint
from slide_mm.engine.outputs import make_folder, write_atomically

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def results_of_pictures(out: Path, results: dict[str, Any]) -> Iterator[None]:
    """Write ``results.json`` at the end, whatever has ended the block, for the pictures there are.

    Args:
        out: The folder. Without a picture nothing is left in it.
        results: What to write; its ``images`` are added in the block.
    """
    footprint = Footprint(out)
    try:
        make_folder(out)
        yield
    finally:
        if not results["images"]:
            footprint.erase()
        else:
            _write_results(out, results)


def _write_results(out: Path, results: dict[str, Any]) -> None:
    while True:
        try:
            with write_atomically(out / "results.json") as file:
                file.write_text(json.dumps(results) + "\n", encoding="utf-8")
            return
        except OSError as error:
            if error.errno not in _FULL or len(results["images"]) < 2:
                raise
            # The disk is full: the last picture makes room.
            remove_files(out, results["images"].pop())


def remove_files(out: Path, record: dict[str, Any]) -> None:
    """Remove the files that an image's record names."""
    for key in ("picture", "labels"):
        if key in record:
            (out / record[key]).unlink(missing_ok=True)
