"""What the tools tell people."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import print_log

from slide_mm.checkpoints import CheckpointError

_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_SECONDS_BEHIND_FIRST = 3


class ConfigError(ValueError):
    """A mistake in a config or on the command line; the message says what to do."""


def log_once(message: str) -> None:
    """Log from the first process alone, before there is a process group to ask."""
    if _launched_rank() == 0:
        print_log(message, logger="current")


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn the errors a user can mend into one line on stderr and exit code 1.

    Every other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        # A launcher kills all processes when one ends: the first one speaks for all, and the
        # others only live to speak where it had nothing to say.
        if _launched_rank() > 0:
            time.sleep(_SECONDS_BEHIND_FIRST)
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)


def _launched_rank() -> int:
    """Rank of this process as its launcher has set it, 0 without one."""
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if name in os.environ), 0)
