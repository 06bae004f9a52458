import json
import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def test_benchmark_of_the_operation(run_tool, tmp_path):
    figures, picture = tmp_path / "figures.json", tmp_path / "folder" / "picture.png"
    finished = run_tool(
        "analysis_tools/benchmark_attention.py",
        *("--shapes", "1x8x9x1x8", "--rounds", "1", "--threads", "1"),
        *("--contenders", "window attention", "chunked"),
        *("--json", str(figures), "--out", str(picture)),
    )
    assert finished.returncode == 0, finished.stderr
    assert picture.stat().st_size > 0
    report = json.loads(figures.read_text())
    assert report["environment"]["threads"] == 1
    contenders = report["shapes"]["1x8x9x1x8"]["contenders"]
    assert list(contenders) == ["window attention", "chunked"]
    for name, contender in contenders.items():
        assert contender["ms"]["both"]["median"] > 0 < contender["ms"]["forward"]["median"]
        assert name in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "--shapes", "A", "1x2x3"], "shape '1x2x3': give one of A, B, C, or"),
        (["attention", "--contenders", "best"], "no contender 'best' here: choose from window"),
        (["attention", "--rounds", "0"], "--rounds is 0: give a positive number"),
        (["attention", "--out", "picture"], "--out is picture: name a file"),
        (["attention", "--device", "nonsense"], "--device nonsense cannot be used:"),
        (["attention", "--json", "README.md/x.json"], "README.md cannot be written:"),
        (["backbones", "--sizes", "800"], "size '800': give HEIGHTxWIDTH"),
    ],
)
def test_wrong_options_give_one_line(arguments, message, monkeypatch, capsys):
    tool = TOOLS / f"analysis_tools/benchmark_{arguments[0]}.py"
    monkeypatch.setattr(sys, "argv", [str(tool), *arguments[1:]])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(tool), run_name="__main__")
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
