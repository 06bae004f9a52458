import json

import pytest
import torch
from PIL import Image

from slide_mm.analysis import attention_benchmark, backbone_benchmark, benchmark
from slide_mm.models import FAMILIES


def test_benchmark_of_the_operation(run, tmp_path, monkeypatch, capsys):
    """In this process, and without measuring what the machine can do, which take long."""
    monkeypatch.setattr(benchmark, "run_in_fresh_process", lambda function, *args: function(*args))
    rates = benchmark.Rates(arithmetic=1e9, bandwidth=1e9)
    monkeypatch.setattr(attention_benchmark, "measure_rates", lambda device, dtype: rates)
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
            median, low, high = (
                f"{x:.1f}" if x >= 1 else f"{x:.4f}"
                for x in (time["median"], time["low"], time["high"])
            )
            assert f" {median} ({low} to {high}, n = 2)" in row
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
        (["backbones", "--batch", "0"], "--batch is 0: give a positive number"),
    ],
)
def test_wrong_options_give_one_line(arguments, message, refused):
    tool, *options = arguments
    line = refused(f"analysis_tools/benchmark_{tool}.py", *options)
    assert line.startswith(f"error: {message}")


@pytest.fixture
def graphs_of_a_cpu(monkeypatch):
    """CUDA graphs that are none, and one reason why one can't be made."""
    monkeypatch.setattr(benchmark, "run_in_fresh_process", lambda function, *args: function(*args))
    for module in (attention_benchmark, backbone_benchmark):
        monkeypatch.setattr(module, "list_modes", lambda device: list(benchmark.MODES))
        monkeypatch.setattr(module, "record_graphs", lambda runs: dict(list(runs.items())[1:]))


def test_benchmarks_tell_what_graphs_take(run, tmp_path, monkeypatch, capsys, graphs_of_a_cpu):
    rates = benchmark.Rates(arithmetic=1e9, bandwidth=1e9)
    monkeypatch.setattr(attention_benchmark, "measure_rates", lambda device, dtype: rates)
    small = FAMILIES["slide-pvt"].backbone
    arch = {**small.arch_zoo["tiny"], "embed_dims": (8, 16, 40, 64), "depths": (1, 1, 1, 1)}
    backbones = {name: lambda _: small(arch, out_indices=(1,)) for name in ("theirs", "ours")}
    monkeypatch.setitem(backbone_benchmark.FAMILIES, "pvt", backbones)
    figures = tmp_path / "figures.json"
    options = ["--rounds", "2", "--dtype", "bfloat16", "--json", figures]
    run(
        "analysis_tools/benchmark_attention.py",
        *("--shapes", "2x8x9x1x32", "--contenders", "window attention", "chunked", *options),
        *("--out", tmp_path / "attention.png"),
    )
    report = json.loads(figures.read_text())
    assert report["environment"]["dtype"] == "bfloat16"
    contenders = report["shapes"]["2x8x9x1x32"]["contenders"]
    assert "graph_ms" not in contenders["window attention"]
    assert set(contenders["chunked"]["graph_ms"]) == {"forward", "both"}
    run(
        "analysis_tools/benchmark_backbones.py",
        *("--families", "pvt", "--sizes", "32x32", "--batch", "2", *options),
        *("--out", tmp_path / "backbones.png"),
    )
    report = json.loads(figures.read_text())
    assert report["batch"] == 2
    assert set(report["results"]["32x32"]["pvt"]["ours"]["graph_ms"]) == {"forward", "both"}
    printed = capsys.readouterr().out
    assert printed.count(", as a CUDA graph") == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}


def test_a_contender_that_fails_is_told_and_left_out(run, tmp_path, monkeypatch, capsys):
    def make_contender(name, inputs):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(attention_benchmark, "make_contender", make_contender)
    monkeypatch.setattr(attention_benchmark, "_check_agreement", lambda *_: 0.0)
    monkeypatch.setattr(
        attention_benchmark, "measure_rates", lambda *_, **__: benchmark.Rates(1e9, 1e9)
    )
    run(
        "analysis_tools/benchmark_attention.py",
        *("--shapes", "1x8x9x1x32", "--contenders", "chunked", "--out", tmp_path / "picture.png"),
    )
    printed = capsys.readouterr()
    assert "chunked, forward: out of memory\n" in printed.err
    assert "| chunked | -" in printed.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(refused):
    assert refused("misc/try_gpu.py").startswith("error: --device cuda cannot be used:")
