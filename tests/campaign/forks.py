"""Tools run in forks of this process: importing everything once, they answer in a second."""

import os
import resource
import runpy
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60
GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """What a tool did.

    Attributes:
        code: Exit code; negative for the signal that ended it.
        output: What it printed, on both streams.
        seconds: How long it took.
        peak: Bytes of memory at the peak, those of this process included.
    """

    code: int
    output: str
    seconds: float
    peak: int

    def complaints(self) -> list[str]:
        """What a person would not accept, whatever they had asked for."""
        errors = [line for line in self.output.splitlines() if line.startswith("error:")]
        checks = {
            "a traceback": "Traceback (most recent call last)" in self.output,
            f"killed by signal {-self.code}": self.code < 0,
            f"took {self.seconds:.0f} s": self.seconds > SECONDS,
            f"took {self.peak / GIB:.1f} GiB": self.peak > 4 * GIB,
            f"{len(errors)} error lines": len(errors) > 1 or (self.code == 0 and bool(errors)),
            f"exit code {self.code}": self.code not in (0, 1, 2),
            "failed without a word": self.code == 1 and not errors and "problem" not in self.output,
        }
        return [name for name, holds in checks.items() if holds]


def run_forked(tool: str, arguments: list[str], folder: Path) -> Outcome:
    """Run a file of tools/ in a fork.

    Args:
        tool: Such as ``'train.py'``.
        arguments: Its command line.
        folder: Where it runs and where its output is kept.
    """
    log = folder / "output.txt"
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os._exit(_run(tool, arguments, folder, log))
    code, usage = _wait(pid, begin)
    seconds = time.monotonic() - begin
    return Outcome(code, log.read_text(errors="replace"), seconds, usage.ru_maxrss * 1024)


def _wait(pid: int, begin: float) -> tuple[int, resource.struct_rusage]:
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), usage
        if time.monotonic() - begin > SECONDS + 5:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)


def _run(tool: str, arguments: list[str], folder: Path, log: Path) -> int:
    os.setsid()
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (os.fdopen(x, "w", buffering=1, closefd=False) for x in (1, 2))
    os.chdir(folder)
    torch.set_num_threads(1)  # A fork has none of the threads that OpenMP counts on.
    script = ROOT / "tools" / tool
    sys.argv = [str(script), *arguments]
    code = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
