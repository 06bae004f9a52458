"""Forks of this process, which may be killed or work together."""

import faulthandler
import itertools
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path


def start(function: Callable, *args) -> int:
    """Call a function in a fork of this process; return its id."""
    if child := os.fork():
        return child
    try:
        function(*args)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def wait(child: int) -> int:
    """Wait until a process has ended; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_two(function: Callable, *args) -> None:
    """Call a function in two forks, the processes of a distributed run, which must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run_rank(rank: int) -> None:
        faulthandler.dump_traceback_later(300, exit=True)  # Each may wait for the other for ever.
        os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank))
        function(*args)

    assert [wait(child) for child in [start(run_rank, rank) for rank in (0, 1)]] == [0, 0]


_SAVING = ("_save_checkpoint_with_step", "put", "write_atomically", "_sync_folder", "empty_bin")


def kill_at_line(number: int) -> None:
    """Kill this process at that line, counted as they run, of the code that saves checkpoints."""
    lines = itertools.count(1)

    def trace(frame, event, _):
        if frame.f_code.co_name not in _SAVING:
            return None
        if event == "line" and next(lines) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def checkpoints(folder: Path) -> set[str]:
    """Names of a folder's checkpoints, of those that are half-written too."""
    return {path.name for path in folder.glob("*") if path.suffix == ".pth"}
