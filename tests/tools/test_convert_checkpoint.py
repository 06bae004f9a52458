from functools import partial
from pathlib import Path

import pytest
import timm
import torch

from slide_mm.checkpoints import get_state_dict, read_checkpoint
from slide_mm.models import SlidePVTv2

TOOL = "model_converters/convert_checkpoint.py"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with the checkpoint of a small model of timm."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(timm.create_model("pvt_v2_b0", num_classes=5).state_dict(), "timm.pth")


@pytest.fixture
def convert(run):
    return partial(run, TOOL, "--arch", "slide-pvtv2/b0")


@pytest.fixture
def refused(refused):
    return lambda src, *options, dst="out/dst.pth", arch="slide-pvtv2/b0": refused(
        TOOL, src, dst, "--arch", arch, *options
    )


def weights_of(path):
    return get_state_dict(read_checkpoint(path))


def files():
    return sorted(path.name for path in Path().rglob("*"))


def test_round_trips_through_every_format_are_exact(convert):
    convert("timm.pth", "a.pth")
    convert("a.pth", "b.safetensors")
    convert("b.safetensors", "c.bin", "--format", "safetensors")
    convert("c.bin", "d.pth", "--format", "pth")
    assert files() == ["a.pth", "b.safetensors", "c.bin", "d.pth", "timm.pth"]
    first = weights_of("a.pth")
    for path in ("b.safetensors", "c.bin", "d.pth"):
        weights = weights_of(path)
        assert weights.keys() == first.keys()
        assert all(torch.equal(weights[name], first[name]) for name in first)
    for path in ("a.pth", "b.safetensors"):
        backbone = SlidePVTv2("b0", init_cfg={"type": "Pretrained", "checkpoint": path})
        backbone.init_weights()
        assert all(torch.equal(first[name], x) for name, x in backbone.state_dict().items())
    # For classifiers.
    assert torch.equal(first["head.fc.weight"], weights_of("timm.pth")["head.weight"])


def test_dry_run_only_reports(convert, capsys):
    convert("timm.pth", "d.pth", "--slide-stages", 0, "--source", "pvtv2-timm", "--dry-run")
    output = capsys.readouterr().out
    assert "timm.pth (layout pvtv2-timm) covers 99.8% of SlidePVTv2" in output
    for row in ("copied  ", "resampled  ", "initialised  ", "left over  "):
        assert row in output
    assert files() == ["timm.pth"]


class TestRefusals:
    def test_bad_files(self, refused):
        weights = torch.load("timm.pth")
        Path("zero.pth").touch()
        Path("half.pth").write_bytes(Path("timm.pth").read_bytes()[:10000])
        torch.save({"code": print, **weights}, "code.pth")
        torch.save(timm.create_model("resnet10t").state_dict(), "resnet.pth")
        torch.save({**weights, "patch_embed.proj.bias": torch.full((32,), torch.nan)}, "nan.pth")
        assert "nothing.pth does not exist" in refused("nothing.pth")
        assert "zero.pth (0 bytes) cannot be read" in refused("zero.pth")
        assert "half.pth (10000 bytes) cannot be read" in refused("half.pth")
        assert "code.pth holds builtins.print, which is neither" in refused("code.pth")
        assert "resnet.pth is of another model" in refused("resnet.pth")
        assert "nan.pth has NaN or infinite values in patch_embed.proj.bias" in refused("nan.pth")
        assert "images of 3 channels" in refused("timm.pth", "--model-options", "in_channels=4")
        assert "timm.pth does not fit SlidePVTv2" in refused("timm.pth", arch="slide-pvtv2/b1")
        assert "is for SlidePVTv2" in refused("timm.pth", arch="slide-swin/tiny")

    def test_low_coverage(self, refused, convert):
        weights = {
            n: x for n, x in torch.load("timm.pth").items() if not n.startswith("stages.3.b")
        }
        torch.save(weights, "short.pth")
        line = refused("short.pth")
        assert "% of the parameters are covered (at least 90.0% must be)" in line
        assert "stages.3.blocks.0." in line
        convert("short.pth", "dst.pth", "--min-coverage", 0.2)
        # What the checkpoint lacks isn't made up.
        assert not any(name.startswith("stages.3.blocks") for name in weights_of("dst.pth"))

    def test_wrong_options(self, refused):
        assert "arch is slide-pvtv2: choose one of" in refused("timm.pth", arch="slide-pvtv2")
        assert "--min-coverage is 90.0" in refused("timm.pth", "--min-coverage", "90")
        assert "slide_stages is " in refused("timm.pth", "--slide-stages", "7")
        assert "unexpected keyword" in refused("timm.pth", "--model-options", "depth=3")


@pytest.mark.parametrize("dst", ["dst.pth", "dst.safetensors"])
def test_destination_is_never_half(monkeypatch, refused, dst):
    def write_half(tensors, path, *_):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("torch.save", write_half)
    monkeypatch.setattr("safetensors.torch.save_file", write_half)
    problem = f"{dst} cannot be written: no space left"
    assert problem in refused("timm.pth", dst=dst)
    Path(dst).write_bytes(b"older")
    assert problem in refused("timm.pth", dst=dst)
    assert Path(dst).read_bytes() == b"older"
