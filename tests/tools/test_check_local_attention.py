import json
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from slide_mm.analysis.local_attention import measuring
from slide_mm.engine import load_config


@pytest.fixture(scope="module")
def config(write_config):
    return write_config("mask_rcnn")


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory):
    """Weights of the config's model whose learned kernels are 0."""
    cfg = load_config(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    weights = model.state_dict()
    for name in weights:
        if name.endswith("deformed_kernel"):
            weights[name].zero_()
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"state_dict": weights}, path)
    return str(path)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.effect_noise((256, 192), 80).convert("RGB").save(path)
    return str(path)


@pytest.fixture
def run(run, monkeypatch):
    """Run the tool, without a process for each measurement."""
    monkeypatch.setattr(measuring, "run_in_fresh_process", lambda function, *args: function(*args))
    return partial(run, "analysis_tools/check_local_attention.py")


def test_whole_report(run, config, checkpoint, image, tmp_path, capsys):
    out = tmp_path / "folder" / "report"
    arguments = ["--images", image, "--points", "0.5,0.25", "--sizes", 64, 96]
    run(config, "--checkpoint", checkpoint, *arguments, "--out", out)
    output = capsys.readouterr()
    assert f"report: {out / 'report.html'}" in output.out
    assert "[6/6]" in output.err

    numbers = json.loads((out / "report.json").read_text())
    assert numbers["facts"]["weights"] == checkpoint
    assert numbers["cost"]["sides"] == [64, 96]
    assert numbers["equivariance"]["sliding"][0]["error"] < 1e-5
    assert numbers["equivariance"]["sliding"][0]["border_excluded"]
    assert numbers["attention"][image]["points"] == [[128, 48]]
    # The checkpoint's, not the random ones of a new model.
    shifts = numbers["deformed_shifts"]["stage 1, block 1"]
    assert shifts["share_at_own_offset"] == pytest.approx(1)
    assert max(x["difference"] for x in numbers["deployment"]["points"]) < 1e-4

    html = (out / "report.html").read_text()
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == html.count("data:image/png") == 3 + 3 + 4
    assert {path.suffix for path in out.iterdir()} == {".png", ".json", ".html"}


@pytest.mark.slow
def test_against_another_config(run, config, write_config, image, tmp_path):
    other = write_config("semantic_fpn", "model = dict(backbone=dict(kernel_size=5))")
    out = tmp_path / "out"
    run(config, "--against", other, "--images", image, "--sizes", 32, 64, "--out", out)
    numbers = json.loads((out / "report.json").read_text())
    assert list(numbers["cost"]["models"]) == ["sliding", "against"]
    reaches = [numbers["receptive_field"][name][0]["reach"] for name in ("sliding", "against")]
    assert reaches[1] > reaches[0]


def test_against_a_backbone_of_another_project(run, config, write_config, image, tmp_path):
    backbone = "dict(_delete_=True, type='ResNet', depth=18, init_cfg=dict(checkpoint='a://b'))"
    other = write_config("mask_rcnn", f"model = dict(backbone={backbone})")
    out = tmp_path / "out"
    run(config, "--against", other, "--images", image, "--sizes", 32, 64, "--out", out)
    numbers = json.loads((out / "report.json").read_text())
    assert list(numbers["cost"]["ratios"]["ms"]) == ["backbone"]
    assert [x["mixer"] for x in numbers["equivariance"]["against"]] == ["ResNet"] * 4


class TestWrongInputs:
    @pytest.fixture
    def refused(self, refused):
        return lambda *args: refused(*args, *([] if "--out" in args else ["--out", "out"]))

    def test_config(self, refused, config, write_config):
        assert "nowhere.py does not exist" in refused("nowhere.py")
        assert "nowhere.py does not exist" in refused(config, "--against", "nowhere.py")
        original = write_config("mask_rcnn", "model = dict(backbone=dict(slide_stages=()))")
        assert "no stage of the backbone of" in refused(original)
        resnet = write_config(
            "semantic_fpn", "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18))"
        )
        assert "is a ResNet" in refused(resnet)
        backbone = "dict(_delete_=True, type='ResNet', depth=18, out_indices=(1, 3))"
        coarse = write_config("mask_rcnn", f"model = dict(backbone={backbone})")
        assert "outputs of strides 8, 32: give" in refused(config, "--against", coarse)
        Path("empty.py").write_text("")
        assert "empty.py has no model" in refused("empty.py")

    def test_checkpoint(self, refused, config, write_config, checkpoint):
        assert "nothing.pth does not exist" in refused(config, "--checkpoint", "nothing.pth")
        segmentor = write_config("semantic_fpn")
        assert "tensors fit" in refused(segmentor, "--checkpoint", checkpoint)

    def test_images(self, refused, config):
        assert "image no.png does not exist" in refused(config, "--images", "no.png")
        Path("text.png").write_text("no image")
        assert "image text.png cannot be read" in refused(config, "--images", "text.png")
        Image.new("RGB", (300, 100)).save("small.png")
        assert "small.png is 300 x 100: give 160" in refused(config, "--images", "small.png")

    def test_options(self, refused, config):
        assert "--sizes is 64: give two or more" in refused(config, "--sizes", "64")
        assert "--sizes is 8 64" in refused(config, "--sizes", "64", "8")
        assert "--points has '3': give X,Y" in refused(config, "--points", "3")
        assert "outside the image" in refused(config, "--points", "0.5,1.5")
        assert "--device nonsense cannot be used" in refused(config, "--device", "nonsense")
        Path("file").touch()
        assert "file cannot be written" in refused(config, "--out", "file")
