import onnx
import pytest
import torch
from torch.nn import functional as F

from slide_mm.engine import ConfigError
from slide_mm.engine.deployment import AdaptiveAveragePool, check_onnx, export_onnx

WIDTHS = "embed_dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)"
RATIOS = "mlp_ratios=(1, 1, 1, 1), sr_ratios=(8, 4, 2, 1)"
FAMILIES = {"SlideSwin": WIDTHS, "SlidePVT": f"{WIDTHS}, {RATIOS}"}
FAMILIES["SlidePVTv2"] = FAMILIES["SlidePVT"]


@pytest.mark.parametrize("size", [(1, 2, 5, 7), (2, 3, 12, 9), (1, 1, 6, 13)])
@pytest.mark.parametrize("output_size", [1, 2, 3, 6])
def test_pooling_is_that_of_pytorch(size, output_size):
    x = torch.randn(size)
    expected = F.adaptive_avg_pool2d(x, output_size)
    torch.testing.assert_close(AdaptiveAveragePool(output_size)(x), expected)


def write_segmentor(folder, family):
    path = folder / "config.py"
    path.write_text(
        f"""
default_scope = "mmseg"
custom_imports = dict(imports=["slide_mm"], allow_failed_imports=False)
model = dict(
    type="EncoderDecoder",
    backbone=dict(type="{family}", arch=dict({FAMILIES[family]})),
    decode_head=dict(
        type="UPerHead", in_channels=[8, 16, 16, 32], in_index=[0, 1, 2, 3], channels=8,
        num_classes=3, norm_cfg=dict(type="SyncBN"),
    ),
)
"""
    )
    return str(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_segmentor_equals_pytorch(family, tmp_path):
    """At sizes that the graph was not traced with, in both runtimes."""
    config, file = write_segmentor(tmp_path, family), str(tmp_path / "model.onnx")
    differences = export_onnx(config, None, file)
    assert len(differences) == 3
    assert {node.domain for node in onnx.load(file).graph.node} <= {"", "ai.onnx"}
    report = check_onnx(file, config, size=(64, 96), rounds=1)
    assert report["ms"].keys() == {"pytorch", "onnxruntime", "openvino"}
    for differences in report["differences"].values():
        assert max(difference for _, difference in differences) < 1e-3


def test_static_export_needs_a_size(tmp_path):
    config = write_segmentor(tmp_path, "SlideSwin")
    with pytest.raises(ConfigError, match="add --size HEIGHT WIDTH"):
        export_onnx(config, None, str(tmp_path / "model.onnx"), static=True)
    assert not (tmp_path / "model.onnx").exists()


def test_other_files_are_refused(tmp_path):
    config = write_segmentor(tmp_path, "SlideSwin")
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(ConfigError, match="cannot be read as ONNX"):
        check_onnx(str(tmp_path / "model.onnx"), config)
