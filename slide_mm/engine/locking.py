"""One training in a work folder at a time."""

import os
from contextlib import suppress
from pathlib import Path

from slide_mm.engine.reporting import ConfigError, launched_rank

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None


class WorkDirTakenError(ConfigError):
    """Another training is running in a work folder."""


class WorkDirLock:
    """Holds a work folder for this training; the system frees it when the process dies.

    The folder itself is locked, so that no file is left. Only the first process of a distributed
    training takes it. Where the system or its disk has no locks, nothing is held.
    """

    def __init__(self, work_dir: str | Path) -> None:
        self.work_dir = work_dir
        self._descriptor: int | None = None

    def __enter__(self) -> "WorkDirLock":
        self.take()
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def take(self) -> None:
        """Take the folder, if it exists and isn't held yet.

        Raises:
            WorkDirTakenError: If another training has it.
        """
        if self._descriptor is not None or fcntl is None or launched_rank() > 0:
            return
        try:
            self._descriptor = os.open(self.work_dir, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise WorkDirTakenError(
                f"another training is running in {self.work_dir}: wait for its end, or give "
                "another folder with --work-dir"
            ) from error
        except OSError:
            self._close()
        else:
            # Loader processes live on for some seconds when this process is killed.
            os.register_at_fork(after_in_child=self._close)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)
