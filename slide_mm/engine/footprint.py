"""What a run leaves in a folder, and how to take it away again."""

import os
import shutil
from pathlib import Path

from slide_mm.engine.reporting import ConfigError

# Runs write their config and the name of their last checkpoint over those of earlier ones.
_MAX_KEPT_BYTES = 1 << 20


class Footprint:
    """What a folder holds before a run, to be restored where the run comes to nothing.

    What lies directly in the folder, which need not exist, is remembered: its small files with what
    they hold, and of all else the name.

    Raises:
        ConfigError: If it can't be written to.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder).absolute()
        parents = [self.folder, *self.folder.parents]
        self.missing = [path for path in parents if not os.path.lexists(path)]
        existing = parents[len(self.missing)]
        if not existing.is_dir():
            raise ConfigError(f"{folder} cannot be written: {existing} is no folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ConfigError(f"{folder} cannot be written: {existing} is protected")
        self.before = set() if self.missing else set(self.folder.iterdir())
        self.kept = {
            path: (path.read_bytes(), path.stat())
            for path in self.before
            if path.is_file() and path.stat().st_size <= _MAX_KEPT_BYTES
        }

    def erase(self) -> None:
        """Remove what has come into the folder, and the folder if it wasn't there."""
        if not self.folder.is_dir():
            return
        for path in set(self.folder.iterdir()) - self.before:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for path, (content, status) in self.kept.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        for path in self.missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
