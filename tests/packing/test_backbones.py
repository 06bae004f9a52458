import json

import pytest
import timm
import torch
from timm.models import _hub

from slide_mm.checkpoints import CheckpointError, fetching
from slide_mm.engine.reporting import ConfigError
from slide_mm.packing import pack_backbone
from tests.models.archs import FAMILY, narrow


def name_of(family):
    arch = next(iter(family.backbone.arch_zoo))
    return f"{family.name}/{arch}", f"{family.timm_name}_{arch}"


def save_classifier(family, path, **options):
    """Save what projects/imagenet_pretrain leaves of a model with random weights."""
    torch.manual_seed(0)
    model = timm.create_model(name_of(family)[1], **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights = {f"backbone.{name}": x for name, x in model.state_dict().items()}
    torch.save({"state_dict": weights, "optimizer": {"step": 1}}, path)
    return model.eval()


@FAMILY
@torch.no_grad()
def test_classifier_there_and_back(family, tmp_path, monkeypatch):
    """Through timm's format, by timm's own loader and into a detector's backbone."""
    own = dict(arch=narrow(family), slide_stages=(1,), kernel_size=5)
    checkpoint, folder = tmp_path / "weights.pth", tmp_path / "folder"
    model = save_classifier(family, checkpoint, num_classes=7, in_chans=4, **own)
    options = {**own, "in_channels": 4}
    pack_backbone(str(checkpoint), folder, None, "mit", name_of(family)[0], options)
    files = {path.name for path in folder.iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors"}
    packed = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 4, 60, 44)
    assert packed(images).equal(model(images))
    cfg = json.loads((folder / "config.json").read_text())
    assert cfg["architecture"] == name_of(family)[1]
    assert cfg["pretrained_cfg"]["license"] == "mit"
    assert "license: mit" in (folder / "README.md").read_text()

    downloaded = []
    monkeypatch.setattr(
        fetching,
        "download_from_hf",
        lambda *names: downloaded.append(names) or str(folder / names[1]),
    )
    for place in (str(folder), f"local-dir:{folder}", "hf-hub:somebody/model"):
        init_cfg = dict(type="Pretrained", checkpoint=place)
        backbone = family.backbone(**options, init_cfg=init_cfg)
        backbone.init_weights()
        weights = backbone.state_dict()
        assert all(x.equal(weights[n]) for n, x in model.state_dict().items() if n in weights)
    assert downloaded == [("somebody/model", "model.safetensors")]
    assert _hub.download_from_hf is not fetching.download_from_hf


@pytest.mark.parametrize("options", [{}, {"kernel_size": 5, "slide_stages": ()}])
def test_weights_of_another_arch(options, tmp_path):
    """What a training may start from is not what it was."""
    family = next(iter(FAMILY.args[1]))
    arch = narrow(family)
    save_classifier(family, tmp_path / "a.pth", arch=arch, slide_stages=(0,), num_classes=0)
    with pytest.raises(CheckpointError, match=r"a\.pth (is not exactly of this arch|slides in)"):
        pack_backbone(
            str(tmp_path / "a.pth"),
            tmp_path / "folder",
            arch=name_of(family)[0],
            options={"arch": arch, **options},
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_unknown_names(tmp_path):
    (tmp_path / "config.py").write_text("model = dict(backbone=dict(type='ResNet'))")
    with pytest.raises(ConfigError, match="--backbone is slide-swin: choose one of"):
        pack_backbone("a.pth", tmp_path / "out", arch="slide-swin")
    with pytest.raises(ConfigError, match="is ResNet, none of ours"):
        pack_backbone("a.pth", tmp_path / "out", str(tmp_path / "config.py"))
    text = "model = dict(backbone=dict(type='SlideSwin'), data_preprocessor=dict(mean=[1, 2, 3]))"
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(ConfigError, match="leaves images as BGR"):
        pack_backbone("a.pth", tmp_path / "out", str(tmp_path / "config.py"))
    with pytest.raises(ConfigError, match="--license is 'a b'"):
        pack_backbone("a.pth", tmp_path / "out", license_name="a b")
