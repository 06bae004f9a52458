import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine import ConfigError, onnx_bands, onnx_check, onnx_export, runtimes
from slide_mm.engine.config import load_config
from slide_mm.engine.onnx_check import check_onnx, find_mistakes
from slide_mm.engine.onnx_export import (
    AdaptiveAveragePool,
    PublishedSlideAttention,
    ResizedPositions,
    export_onnx,
    iterate_nodes,
    load_part,
)
from slide_mm.layers import AbsolutePositionEmbedding, SlideAttention
from tests.needs import needs_pytorch

pytestmark = needs_pytorch("2.5", "the operator set of exports")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
TOOLS, DEPLOYMENT = ROOT / "tools/deployment", ROOT / "docs/deployment.md"
WIDTHS = "embed_dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)"
RATIOS = "mlp_ratios=(1, 1, 1, 1), sr_ratios=(8, 4, 2, 1)"
NECK = "neck=dict(type='FPN', in_channels=[8, 16, 16, 32], out_channels=8, num_outs=4)"
HEAD = "in_index=[0, 1, 2, 3], channels=8, num_classes=3, norm_cfg=dict(type='SyncBN')"
UPERNET = f"decode_head=dict(type='UPerHead', in_channels=[8, 16, 16, 32], {HEAD})"
SEMANTIC_FPN = (
    f"{NECK}, decode_head=dict(type='FPNHead', in_channels=[8] * 4, "
    f"feature_strides=[4, 8, 16, 32], {HEAD})"
)
RETINANET = (
    f"{NECK}, bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=8, "
    "anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4]))"
)


def write_config(folder, family="SlideSwin", parts=UPERNET, slide_stages=(0, 1), more=""):
    scope, kind = ("mmdet", "RetinaNet") if parts is RETINANET else ("mmseg", "EncoderDecoder")
    arch = WIDTHS if family == "SlideSwin" else f"{WIDTHS}, {RATIOS}"
    path = folder / f"{family}.py"
    path.write_text(
        f"""
default_scope = "{scope}"
custom_imports = dict(imports=["slide_mm"], allow_failed_imports=False)
model = dict(
    type="{kind}",
    backbone=dict(type="{family}", arch=dict({arch}), slide_stages={slide_stages}, {more}),
    {parts},
)
"""
    )
    return str(path)


@pytest.mark.parametrize("size", [(1, 2, 5, 7), (2, 3, 12, 9), (1, 1, 6, 13)])
@pytest.mark.parametrize("output_size", [1, 2, 3, 6, (2, 5)])
def test_pooling_is_that_of_pytorch(size, output_size):
    x = torch.randn(size)
    expected = F.adaptive_avg_pool2d(x, output_size)
    torch.testing.assert_close(AdaptiveAveragePool(output_size)(x), expected)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (13, 4), (7, 7), (3, 40)])
def test_positions_are_resized_as_by_pytorch(size):
    positions = AbsolutePositionEmbedding(6, 7)
    x = torch.randn(2, *size, 6)
    torch.testing.assert_close(ResizedPositions(positions)(x), positions(x))


@pytest.mark.parametrize(
    ("family", "parts", "slide_stages"),
    [
        ("SlideSwin", UPERNET, (0, 1)),
        ("SlidePVT", SEMANTIC_FPN, (0, 1)),
        ("SlidePVTv2", RETINANET, (0, 1)),
        ("SlideSwin", RETINANET, ()),
        ("SlidePVT", UPERNET, ()),
        ("SlidePVTv2", SEMANTIC_FPN, ()),
    ],
)
def test_exported_model_equals_pytorch(family, parts, slide_stages, tmp_path, monkeypatch):
    """At sizes that the graph was not traced with, in both runtimes, in many bands."""
    pytest.importorskip("openvino")
    monkeypatch.setattr(onnx_bands, "_BAND_SIZE", 5000)
    monkeypatch.setattr(onnx_bands, "_MAX_WEIGHTS", 5000)
    config = write_config(tmp_path, family, parts, slide_stages)
    file = tmp_path / "out" / "model.onnx"
    assert len(export_onnx(config, None, file)) == 3
    assert list(file.parent.iterdir()) == [file]
    assert {node.domain for node in iterate_nodes(onnx.load(file).graph)} == {""}
    report = check_onnx([str(file)], config, size=(64, 96), rounds=1)
    assert [result["runtime"] for result in report["results"]] == ["onnxruntime", "openvino"]
    for result in report["results"]:
        assert len(result["differences"]) == 3
        assert max(result["differences"].values()) < 1e-4
    assert find_mistakes(report) == []


@pytest.mark.parametrize(
    ("form", "convolutions", "loops"),
    [("band", 0, 1), ("tap", 0, 0), ("conv", 2, 0), ("published", 4, 0)],
)
def test_forms_of_slide_attention(form, convolutions, loops, tmp_path):
    config, file = write_config(tmp_path), tmp_path / "model.onnx"
    differences = export_onnx(config, None, file, part="backbone", form=form)
    assert max(differences.values()) < 1e-4
    kinds = Counter(node.op_type for node in onnx.load(file).graph.node)
    num_sliding = 2
    assert kinds["Conv"] == 1 + convolutions * num_sliding
    assert kinds["Loop"] == loops * num_sliding


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_published_form_is_laid_out_as_published(tmp_path):
    """Others are measured by it, and onnxruntime is slow where two axes move at a time."""
    layer, file = PublishedSlideAttention(SlideAttention(12, 3)).eval(), tmp_path / "layer.onnx"
    torch.onnx.export(layer, (torch.randn(1, 5, 6, 12),), str(file), dynamo=False)
    nodes = [node for node in onnx.load(file).graph.node if node.op_type == "Transpose"]
    assert [list(node.attribute[0].ints) for node in nodes] == [[0, 3, 1, 2], [0, 2, 3, 1]]


@pytest.mark.parametrize("family", ["SlideSwin", "SlidePVT", "SlidePVTv2"])
@pytest.mark.parametrize("form", onnx_export.FORMS)
def test_what_is_exported_computes_the_same(form, family, tmp_path):
    """With norms that change something; of one family with other kernels and channels, too."""
    channels, kernel_size = (4, 5) if family == "SlidePVT" else (3, 3)
    more = f"in_channels={channels}, kernel_size={kernel_size}"
    cfg = load_config(write_config(tmp_path, family, more=more))
    part = load_part(cfg, None, "backbone", deployed=form != "published")
    for module in part.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    assert part.in_channels == channels
    image = torch.randn(2, channels, 50, 64)
    with torch.no_grad():
        expected = part(image)
        actual = onnx_export._make_exportable(part, form)(image)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "num_loops"), [("SlideSwin", 2), ("SlidePVT", 5), ("SlidePVTv2", 5)]
)
def test_loops_have_constants_of_their_own(family, num_loops, tmp_path):
    """Also those that are equal to others, as biases of zeros are, which are in a file once."""
    config, file = write_config(tmp_path, family), tmp_path / "model.onnx"
    export_onnx(config, None, file, part="backbone")
    graph = onnx.load(file).graph
    constants = {constant.name for constant in graph.initializer}
    bodies = [
        attribute.g for node in graph.node for attribute in node.attribute if attribute.g.node
    ]
    assert len(bodies) == num_loops
    for body in bodies:
        assert body.initializer
        assert not constants & {name for node in iterate_nodes(body) for name in node.input}
        own_constants = {constant.name for constant in body.initializer}
        for node in body.node:
            if node.op_type == "Conv":
                assert own_constants >= set(node.input[1:])


def test_random_weights_show_mistakes_in_the_learned_path(tmp_path):
    part = load_part(load_config(write_config(tmp_path)), None, "backbone", deployed=False)
    image = torch.randn(1, 3, 64, 64)
    expected = part(image)
    for layer in part.modules():
        if hasattr(layer, "deformed_kernel"):
            nn.init.zeros_(layer.deformed_kernel)
    changes = [
        (x - y).abs().max() / y.abs().max() for x, y in zip(part(image), expected, strict=True)
    ]
    assert max(changes) > 10 * onnx_export.MAX_DIFFERENCE


def test_static_file_is_for_one_size(tmp_path):
    config, file = write_config(tmp_path), str(tmp_path / "model.onnx")
    assert export_onnx(config, None, file, size=(50, 64), static=True).keys() == {(1, 50, 64)}
    dims = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 50, 64]
    report = check_onnx([file], config, rounds=1)
    assert report["size"] == (1, 50, 64)


def test_file_says_how_to_normalise_and_which_weights_it_has(tmp_path):
    mean = "data_preprocessor=dict(type='SegDataPreProcessor', mean=[1, 2, 3], std=[4, 5, 6])"
    config, file = write_config(tmp_path, parts=f"{mean}, {UPERNET}"), str(tmp_path / "model.onnx")
    model = load_part(load_config(config), None, "whole", deployed=False).model
    nn.init.ones_(model.decode_head.conv_seg.bias)
    checkpoint = str(tmp_path / "weights.pth")
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    export_onnx(config, checkpoint, file)
    notes = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert notes == {
        "part": "whole",
        "checkpoint": checkpoint,
        "mean": "[1, 2, 3]",
        "std": "[4, 5, 6]",
    }
    assert find_mistakes(check_onnx([file], config, size=(64, 64), rounds=1)) == []
    torch.save({"state_dict": {"other": torch.zeros(1)}}, checkpoint)
    with pytest.raises(CheckpointError):
        check_onnx([file], config)


def test_wrong_export_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "MAX_DIFFERENCE", 0.0)
    config = write_config(tmp_path)
    with pytest.raises(ConfigError, match="nothing has been written"):
        export_onnx(config, None, tmp_path / "out" / "model.onnx", part="backbone")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static": True}, "add --size HEIGHT WIDTH"),
        ({"size": (31, 64)}, "--size is 31 64"),
        ({"checkpoint": "missing.pth"}, "missing.pth"),
        ({"config": "missing.py"}, "missing.py does not exist"),
        ({"out": "model.pt"}, "name a file ending in .onnx"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"config": write_config(tmp_path), "checkpoint": None, "out": "model.onnx"}
    with pytest.raises((ConfigError, CheckpointError), match=message):
        export_onnx(**arguments | options)
    assert not list(tmp_path.glob("*.onnx"))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    config = write_config(tmp_path)
    installed = set()
    for module in (runtimes, onnx_check):
        monkeypatch.setattr(module, "is_installed", installed.__contains__)
    with pytest.raises(ConfigError, match="pip install onnx onnxruntime"):
        export_onnx(config, None, tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="pip install onnxruntime openvino"):
        check_onnx([str(tmp_path / "model.onnx")], config)


def test_older_pytorch_is_told_which_one_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "HAS_ONNX_20", False)
    with pytest.raises(ConfigError, match=r"exports need PyTorch 2\.5 or later, here is \d"):
        export_onnx(write_config(tmp_path), None, tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_refused(tmp_path):
    config, file = write_config(tmp_path), str(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="does not exist"):
        check_onnx([file], config)
    Path(file).write_text("no model")
    with pytest.raises(ConfigError, match="cannot be read as ONNX"):
        check_onnx([file], config)
    export_onnx(config, None, file, part="backbone")
    other = write_config(tmp_path, "SlidePVT")
    Path(other).write_text(Path(other).read_text().replace("embed_dims=(8", "embed_dims=(16"))
    with pytest.raises(ConfigError, match="is not of the model of this config"):
        check_onnx([file], other)


def test_files_of_one_name_have_bars_of_their_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0]))
    spread = SimpleNamespace(median=2.0)
    results = [
        {"runtime": "onnxruntime", "file": file, "spread": spread}
        for file in ("a/model.onnx", "b/model.onnx", "c/other.onnx")
    ]
    report = {"pytorch": spread, "size": (1, 64, 64), "environment": {"threads": 1}}
    onnx_check.plot_latencies({**report, "results": results}, tmp_path / "a.png")
    onnx_check.plot_latencies({**report, "results": results[1:]}, tmp_path / "b.png")
    for axes, number in zip(drawn, (3, 2), strict=True):
        assert len({bar.get_y() for bar in axes.patches}) == number


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"dynamo": False}, {"dynamo": True}])
def test_timm_models_are_exported_by_pytorch_as_they_come(options, tmp_path):
    """The lines of docs/deployment.md, on a smaller model."""
    pytest.importorskip("onnxscript")
    if not hasattr(torch.compiler, "is_exporting"):
        pytest.skip("this PyTorch doesn't tell that it exports")
    torch.manual_seed(0)
    code = re.findall(r"```python\n(.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    (lines,) = (block for block in code if "timm" in block)
    assert 'timm.create_model("slide_pvt_v2_b0"' in lines
    name = "slide_pvt_v2_b0" if options["dynamo"] else "slide_swin_tiny"
    arch = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32), "num_heads": (1, 2, 2, 4)}
    if options["dynamo"]:
        arch |= {"mlp_ratios": (1, 1, 1, 1), "sr_ratios": (8, 4, 2, 1)}
    file = str(tmp_path / "model.onnx")
    lines = lines.replace('"slide_pvt_v2_b0"', f"{name!r}, arch={arch}")
    lines = lines.replace('"model.onnx"', f"{file!r}, **{options}").replace("224", "64")
    scope = {}
    exec(lines, scope)
    run = runtimes.open_with_onnxruntime(file)
    (output,) = run(scope["image"].numpy())
    with torch.no_grad():
        expected = scope["model"](scope["image"])
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-4)


def run_tool(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(TOOLS / name), run_name="__main__")


def test_commands(tmp_path, monkeypatch, capsys):
    config, file, picture = write_config(tmp_path), tmp_path / "a.onnx", tmp_path / "a.png"
    run_tool(monkeypatch, "export_onnx.py", config, "--out", file, "--part", "backbone")
    assert f"written: {file}" in capsys.readouterr().out
    installed = runtimes.is_installed
    monkeypatch.setattr(onnx_check, "is_installed", lambda x: x != "openvino" and installed(x))
    options = ("--size", 64, 64, "--rounds", 1, "--out", picture)
    run_tool(monkeypatch, "check_onnx.py", file, config, *options)
    printed = capsys.readouterr()
    assert "| onnxruntime |" in printed.out
    assert "openvino is not installed: pip install openvino" in printed.err
    assert picture.stat().st_size
    # Random weights are always the same: a checkpoint's are others.
    model = load_part(load_config(config), None, "whole", deployed=False).model
    nn.init.zeros_(model.backbone.stages[0].downsample.norm.weight)
    torch.save(model.state_dict(), tmp_path / "other.pth")
    options = ("--size", 64, 64, "--rounds", 1, "--checkpoint", tmp_path / "other.pth")
    with pytest.raises(SystemExit) as exit_info:
        run_tool(monkeypatch, "check_onnx.py", file, config, *options)
    assert exit_info.value.code == 1
    assert "error: " in capsys.readouterr().err


def test_help_has_an_example(monkeypatch, capsys):
    for name in ("export_onnx.py", "check_onnx.py"):
        with pytest.raises(SystemExit):
            run_tool(monkeypatch, name, "--help")
        assert "example:" in capsys.readouterr().out
