import errno
import os
import signal
from pathlib import Path

import pytest

from slide_mm.checkpoints.writing import write_atomically
from slide_mm.engine import ConfigError, exit_on_user_error, reporting


def test_one_line_and_exit_code(capsys):
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        raise ConfigError("first\n    second")
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == "error: first second\n"


def test_bugs_pass():
    with pytest.raises(ValueError, match="bug"), exit_on_user_error():
        raise ValueError("bug")


def raise_error(error):
    raise error


@pytest.mark.parametrize(
    ("action", "code", "line"),
    [
        (lambda: raise_error(KeyboardInterrupt()), 130, "stopped by Ctrl-C"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM"),
        (lambda: raise_error(OSError(errno.ENOSPC, "No space", "a.pth")), 1, "No space: 'a.pth'"),
        (lambda: Path("/dev/full").write_text("x"), 1, "No space left on device"),
        (lambda: os.mkdir("/dev/null/x"), 1, "Not a directory: '/dev/null/x'"),
    ],
)
def test_end_from_outside_is_one_line_and_leaves_nothing(action, code, line, capsys, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)

    def write_half():
        with write_atomically(tmp_path / "a.txt") as file:
            file.write_text("half")
            action()

    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        write_half()
    assert exit_info.value.code == code
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith("error: ")
    assert line in printed
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is handler


def test_sigterm_ends_forked_processes_without_a_word(capfd):
    ready, tell = os.pipe()
    with exit_on_user_error():
        child = os.fork()
        if child == 0:
            try:
                os.write(tell, b"!")
                signal.sigtimedwait([], 30)
            finally:
                os._exit(1)
        os.read(ready, 1)  # Python forgets what comes while a process is being forked.
        os.kill(child, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_other_processes_let_the_first_speak(capsys, monkeypatch):
    waits = []
    monkeypatch.setattr(reporting.time, "sleep", waits.append)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit), exit_on_user_error():
            raise ConfigError("wrong")
        reporting.log_once(f"from rank {rank}")
    assert waits == [3]
    assert "from rank 1" not in capsys.readouterr().out
