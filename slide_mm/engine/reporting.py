"""What the tools tell people."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import print_log

from slide_mm.checkpoints import CheckpointError

_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_SECONDS_BEHIND_FIRST = 3
# What a disk, or the rights to a folder, have against a file.
_WRITING_ERRORS = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EACCES", "EPERM", "EROFS"),
        *("ENAMETOOLONG", "ENOTDIR", "EISDIR", "EEXIST"),
    )
}


class ConfigError(ValueError):
    """A mistake in a config or on the command line; the message says what to do."""


def log_once(message: str) -> None:
    """Log from the first process alone, before there is a process group to ask."""
    if launched_rank() == 0:
        print_log(message, logger="current")


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn the errors a user can mend, and an end from outside, into one line on stderr.

    The exit code is 1, and 130 or 143 after Ctrl-C or SIGTERM, as in shells. What was being written
    is removed on the way. Every other exception is a bug and keeps its traceback.
    """
    try:
        with _raise_on_sigterm():
            yield
    except (ConfigError, CheckpointError) as error:
        _exit(str(error), 1)
    except KeyboardInterrupt:
        _exit("stopped by Ctrl-C", 130)
    except _Terminated:
        _exit("stopped by SIGTERM", 143)
    except (OSError, RuntimeError) as error:
        if not _is_writing_error(error):
            raise
        _exit(f"a file cannot be written: {error}: make room, or name another place", 1)


def _exit(message: str, code: int) -> None:
    # A launcher kills all processes when one ends. The first process reports an error that all
    # have; the others wait, and report theirs if the first had none.
    if launched_rank() > 0:
        time.sleep(_SECONDS_BEHIND_FIRST)
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


class _Terminated(BaseException):
    pass


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, in this process and not in those it forks.

    A process that a launcher has started dies at once, as the others wait for it; the launcher
    tells why.
    """
    is_launched = any(name in os.environ for name in _RANK_VARIABLES)
    if threading.current_thread() is not threading.main_thread() or is_launched:
        yield
        return
    owner = os.getpid()

    def stop(signum: int, _: object) -> None:
        signal.signal(signum, signal.SIG_DFL)  # Whoever asks twice doesn't want to wait.
        if os.getpid() != owner:
            os.kill(os.getpid(), signum)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_writing_error(error: Exception) -> bool:
    # PyTorch's writer, and loader processes, leave no number.
    texts = (os.strerror(errno.ENOSPC), "PytorchStreamWriter failed writing")
    number = getattr(error, "errno", None)
    return number in _WRITING_ERRORS or any(text in str(error) for text in texts)


def launched_rank() -> int:
    """Rank of this process as its launcher has set it, 0 without one."""
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if name in os.environ), 0)
