import pytest

from slide_mm.analysis import gpu_trial


def test_time_is_kept(capfd):
    commands = {
        "well": ["-c", "print('ran')"],
        "ill": ["-c", "raise SystemExit(3)"],
        "slow": ["-c", "import time; time.sleep(60)"],
        "late": ["-c", "print('never')"],
    }
    assert gpu_trial.run_commands(commands, minutes=0.05) == {
        "well": "done",
        "ill": "failed with exit code 3",
        "slow": "broken off: the time was over",
        "late": "left out: the time was over",
    }
    printed = capfd.readouterr().out
    assert "--- well\nran" in printed
    assert "never" not in printed


@pytest.mark.slow
def test_every_command_runs(tmp_path, monkeypatch):
    """On a CPU, at small sizes, of one kind each, without the tests and what a CPU can't do."""
    monkeypatch.setattr(gpu_trial, "_DTYPES", ["bfloat16"])
    monkeypatch.setattr(gpu_trial, "_CONTENDERS", ("window attention", "chunked"))
    monkeypatch.setattr(gpu_trial, "_FAMILIES", ("pvt",))
    commands = gpu_trial.list_commands(
        tmp_path, "cpu", ["1x8x9x1x32"], "32x32", batches=[2], rounds=1
    )
    assert commands.pop("tests")[:2] == ["-m", "pytest"]
    assert len(commands) == 3
    results = gpu_trial.run_commands(commands, minutes=30)
    assert set(results.values()) == {"done"}, results
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.png"))) == 3
