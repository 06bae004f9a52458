import json

import pytest
import torch
from PIL import Image

from slide_mm.analysis import attention_benchmark, benchmark


def test_benchmark_of_the_operation(run, tmp_path, monkeypatch, capsys):
    """In this process, and without measuring what the machine can do, which take long."""
    monkeypatch.setattr(benchmark, "run_in_fresh_process", lambda function, *args: function(*args))
    rates = benchmark.Rates(arithmetic=1e9, bandwidth=1e9)
    monkeypatch.setattr(attention_benchmark, "measure_rates", lambda device: rates)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    figures, picture = tmp_path / "figures.json", tmp_path / "folder" / "picture.png"
    run(
        "analysis_tools/benchmark_attention.py",
        *("--shapes", "1x8x9x1x8", "--rounds", "2", "--threads", "3"),
        *("--contenders", "window attention", "chunked"),
        *("--json", figures, "--out", picture),
    )
    assert threads[0] == 3
    contenders = json.loads(figures.read_text())["shapes"]["1x8x9x1x8"]["contenders"]
    assert list(contenders) == ["window attention", "chunked"]
    printed = capsys.readouterr().out.splitlines()
    for name, contender in contenders.items():
        (row,) = (line for line in printed if line.startswith(f"| {name} "))
        for time in contender["ms"].values():
            assert f" {time['median']:.1f} ({time['low']:.1f} to {time['high']:.1f}, n = 2)" in row
    colors = {color[:3] for _, color in Image.open(picture).getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "--shapes", "A", "1x2x3"], "shape '1x2x3': give one of A, B, C, or"),
        (["attention", "--contenders", "best"], "no contender 'best' here: choose from window"),
        (["attention", "--rounds", "0"], "--rounds is 0: give a positive number"),
        (["attention", "--out", "picture"], "--out is picture: name a file"),
        (["attention", "--device", "nonsense"], "--device nonsense cannot be used:"),
        (["attention", "--json", "/dev/null/x.json"], "/dev/null cannot be written:"),
        (["backbones", "--sizes", "800"], "size '800': give HEIGHTxWIDTH"),
    ],
)
def test_wrong_options_give_one_line(arguments, message, refused):
    tool, *options = arguments
    line = refused(f"analysis_tools/benchmark_{tool}.py", *options)
    assert line.startswith(f"error: {message}")
