import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

from slide_mm.analysis.deployment_benchmark import check_exports, find_mistakes
from slide_mm.checkpoints import CheckpointError
from slide_mm.engine import ConfigError
from slide_mm.engine.config import load_config
from slide_mm.engine.preflight import check_model
from slide_mm.export import export_model, files, runtimes
from slide_mm.export.program import AdaptiveAveragePool, export_program, in_pieces, load_part
from tests.needs import needs_pytorch

pytestmark = needs_pytorch("2.7", "the exporter")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOOLS = Path(__file__).resolve().parents[2] / "tools/deployment"
WIDTHS = "embed_dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)"
RATIOS = "mlp_ratios=(8, 1, 1, 1), sr_ratios=(8, 4, 2, 1)"
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


@MODELS.register_module(force=True)
class BackboneAlone(BaseModel):
    """A model that needs neither MMDetection nor MMSegmentation."""

    def __init__(self, backbone, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(backbone)

    def forward(self, inputs):
        return self.backbone(inputs)


KINDS = {
    "": ("mmseg", "BackboneAlone"),
    UPERNET: ("mmseg", "EncoderDecoder"),
    SEMANTIC_FPN: ("mmseg", "EncoderDecoder"),
    RETINANET: ("mmdet", "RetinaNet"),
}


def write_config(folder, family="SlideSwin", parts="", more=""):
    scope, kind = KINDS[parts]
    pytest.importorskip("mmengine" if kind == "BackboneAlone" else scope)
    arch = WIDTHS if family == "SlideSwin" else f"{WIDTHS}, {RATIOS}"
    path = folder / f"{family}.py"
    path.write_text(
        f"""
default_scope = "{scope}"
custom_imports = dict(imports=["slide_mm"], allow_failed_imports=False)
model = dict(
    type="{kind}", backbone=dict(type="{family}", arch=dict({arch})), {more} {parts}
)
"""
    )
    return str(path)


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    """A backbone's file for one small size, its config and its checkpoint."""
    folder = tmp_path_factory.mktemp("swin")
    means = "data_preprocessor=dict(type='ImgDataPreprocessor', mean=[1, 2, 3], std=[4, 5, 6])"
    config, checkpoint = write_config(folder, more=means), str(folder / "weights.pth")
    model = check_model(load_config(config), pretrained=False)
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    file = str(folder / "out" / "model.onnx")
    options = {"size": (50, 64), "static": True, "part": "backbone"}
    return config, checkpoint, file, export_model(config, checkpoint, file, **options)


@pytest.mark.parametrize("size", [(1, 2, 5, 7), (2, 3, 12, 9), (1, 1, 6, 13)])
@pytest.mark.parametrize("output_size", [1, 2, 3, 6, (2, 5)])
def test_pooling_is_that_of_pytorch(size, output_size):
    x = torch.randn(size)
    expected = F.adaptive_avg_pool2d(x, output_size)
    torch.testing.assert_close(AdaptiveAveragePool(output_size)(x), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 9), (1, 5, 3), (3, 8, 8)])
def test_pieces_join_to_the_whole(shape):
    layer, x = nn.Linear(6, 6).double(), torch.randn(*shape, 6, dtype=torch.float64)
    torch.testing.assert_close(in_pieces(layer, x), layer(x))


WHOLE = [("SlideSwin", UPERNET), ("SlidePVT", SEMANTIC_FPN), ("SlidePVTv2", RETINANET)]


@pytest.mark.parametrize(
    ("part", "family", "parts"),
    [
        ("backbone", "SlideSwin", ""),
        pytest.param("backbone", "SlidePVT", "", marks=pytest.mark.slow),
        *(pytest.param("whole", *model, marks=pytest.mark.slow) for model in WHOLE),
    ],
)
def test_open_sizes_equal_pytorch_in_both_runtimes(part, family, parts, tmp_path):
    """At sizes that the graph was not made with: 32 x 32, and no multiples of 32 among them."""
    pytest.importorskip("openvino")
    file = tmp_path / "out" / "model.onnx"
    config = write_config(tmp_path, family, parts)
    differences = export_model(config, None, file, size=(50, 470), part=part)
    assert list(file.parent.iterdir()) == [file]
    assert {node.domain for node in onnx.load(file).graph.node} == {""}
    assert differences.keys() == {"onnxruntime", "openvino"}
    for by_size in differences.values():
        assert by_size.keys() == {*runtimes.CHECKED_SIZES, (1, 50, 470)}
        assert max(by_size.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["SlideSwin", "SlidePVT", "SlidePVTv2"])
@pytest.mark.parametrize("options", [{"size": (50, 470)}, {"size": (64, 70), "static": True}])
def test_packages_equal_pytorch(family, options, tmp_path):
    file = tmp_path / "model.pt2"
    config = write_config(tmp_path, family)
    (differences,) = export_model(config, None, file, part="backbone", **options).values()
    assert (1, *options["size"]) in differences
    assert max(differences.values()) < 1e-4
    assert find_mistakes(check_exports([str(file)], config, size=(64, 64), rounds=1)) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["slide_swin_tiny", "slide_pvt_v2_b0"])
def test_timm_models_are_exported_by_pytorch_as_they_come(name, tmp_path):
    timm = pytest.importorskip("timm")
    arch = {"depths": (1, 1, 2, 1), "embed_dims": (8, 16, 16, 32), "num_heads": (1, 2, 2, 4)}
    if name == "slide_pvt_v2_b0":
        arch |= {"mlp_ratios": (1, 1, 1, 1), "sr_ratios": (8, 4, 2, 1)}
    torch.manual_seed(0)
    model = timm.create_model(name, arch=arch, num_classes=10).eval()
    image, file = torch.randn(1, 3, 64, 64), tmp_path / "model.onnx"
    torch.onnx.export(model, (image,), str(file), input_names=["image"], verbose=False)
    (output,) = runtimes.open_with_onnxruntime(file).run(image.numpy())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(output), model(image), rtol=1e-4, atol=1e-4)


def test_file_says_what_it_is(swin):
    config, checkpoint, file, differences = swin
    notes = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert notes == {
        "part": "backbone",
        "checkpoint": checkpoint,
        "size": "[1, 50, 64]",
        "mean": "[1, 2, 3]",
        "std": "[4, 5, 6]",
    }
    assert all(by_size.keys() == {(1, 50, 64)} for by_size in differences.values())
    dims = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 50, 64]
    report = check_exports([file], config, rounds=1)
    assert report["size"] == (1, 50, 64)
    assert find_mistakes(report) == []


def test_other_weights_and_models_are_found(swin, tmp_path):
    config, _, file, _ = swin
    checkpoint = str(tmp_path / "weights.pth")
    model = check_model(load_config(config), pretrained=False)
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    assert find_mistakes(check_exports([file], config, checkpoint, rounds=1))
    torch.save({"state_dict": {"other": torch.zeros(1)}}, checkpoint)
    with pytest.raises(CheckpointError):
        check_exports([file], config, checkpoint)
    other = Path(write_config(tmp_path))
    other.write_text(other.read_text().replace("embed_dims=(8", "embed_dims=(16"))
    with pytest.raises((ConfigError, CheckpointError)):
        check_exports([file], str(other))


def test_files_of_others_are_refused(tmp_path):
    config, file = write_config(tmp_path), tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match="does not exist"):
        check_exports([str(file)], config)
    file.write_text("no model")
    with pytest.raises(ConfigError, match="onnxruntime cannot open"):
        check_exports([str(file)], config)
    with pytest.raises(ConfigError, match=r"give a file ending in \.onnx or \.pt2"):
        check_exports(["model.pth"], config)


def test_wrong_export_is_not_written(swin, tmp_path, monkeypatch):
    config, _, file, _ = swin
    monkeypatch.setitem(files._WRITERS, ".onnx", lambda *arguments: copy(file, arguments[2]))
    out = tmp_path / "out" / "model.onnx"
    with pytest.raises(ConfigError, match="nothing has been written"):
        export_model(config, None, out, size=(50, 64), static=True, part="backbone")
    assert list(out.parent.iterdir()) == []


def copy(file, other):
    Path(other).write_bytes(Path(file).read_bytes())


def test_what_pytorch_cannot_export_is_told_in_a_line(swin, monkeypatch):
    model = load_part(load_config(swin[0]), None, "backbone")
    monkeypatch.setattr(model.model, "forward", lambda image: (image[: int(image.sum())],))
    with pytest.raises(ConfigError, match="the model cannot be exported: ") as error:
        export_program(model, (1, 32, 32))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static": True}, "add --size HEIGHT WIDTH"),
        ({"size": (31, 64)}, "--size is 31 64"),
        ({"checkpoint": "missing.pth"}, "missing.pth"),
        ({"config": "missing.py"}, "missing.py does not exist"),
        ({"out": "model.pt"}, "name a file ending in .onnx or .pt2"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"config": write_config(tmp_path), "checkpoint": None, "out": "model.onnx"}
    with pytest.raises((ConfigError, CheckpointError), match=message):
        export_model(**arguments | options)
    assert not list(tmp_path.glob("*.onnx"))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    config = write_config(tmp_path)
    monkeypatch.setattr(runtimes, "is_installed", lambda name: False)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript onnxruntime"):
        export_model(config, None, tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="pip install onnxruntime openvino"):
        check_exports([str(tmp_path / "model.onnx")], config)


def test_older_pytorch_is_told_which_one_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.6.0"))
    with pytest.raises(ConfigError, match=r"exports need PyTorch 2\.7 or later, here is 2\.6\.0"):
        export_model(write_config(tmp_path), None, tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out").exists()


def run_tool(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(TOOLS / name), run_name="__main__")


def test_commands(swin, tmp_path, monkeypatch, capsys):
    config, _, file, differences = swin
    monkeypatch.setattr("slide_mm.export.export_model", lambda **_: differences)
    run_tool(monkeypatch, "export.py", config, "--out", file)
    assert f"written: {file}" in capsys.readouterr().out
    picture = tmp_path / "a.png"
    run_tool(monkeypatch, "check_export.py", file, config, "--rounds", 1, "--out", picture)
    assert "| onnxruntime |" in capsys.readouterr().out
    assert picture.stat().st_size
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "check_export.py", file, config, "--rounds", 0)
    assert "error: --rounds is 0" in capsys.readouterr().err


def test_notes_are_read_in_all_runtimes(swin):
    for name in runtimes.check_runtimes(swin[2]):
        notes = runtimes.open_file(swin[2], name).notes
        assert json.loads(notes["mean"]) == [1, 2, 3]
