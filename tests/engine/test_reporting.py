import pytest

from slide_mm.engine import ConfigError, exit_on_user_error, reporting


def test_one_line_and_exit_code(capsys):
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        raise ConfigError("first\n    second")
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == "error: first second\n"


def test_bugs_pass():
    with pytest.raises(ValueError, match="bug"), exit_on_user_error():
        raise ValueError("bug")


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
