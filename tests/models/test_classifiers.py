"""timm's generic checks of a vision model, and what the classifiers promise beyond them."""

import math

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from slide_mm.models import SlidePVT, SlidePVTv2, SlideSwin

FAMILIES = {"slide_swin": SlideSwin, "slide_pvt": SlidePVT, "slide_pvt_v2": SlidePVTv2}
NAMES = [f"{prefix}_{arch}" for prefix, family in FAMILIES.items() for arch in family.arch_zoo]
SMALLEST = ["slide_swin_tiny", "slide_pvt_tiny", "slide_pvt_v2_b0"]
LAST = 3


def create(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, drop_path_rate=0.0, **options)


def test_every_arch_is_listed():
    assert sorted(timm.list_models("slide_*")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_default_cfg(name):
    """Shapes alone, on tensors without memory."""
    with torch.device("meta"):
        model = timm.create_model(name)
        images = torch.empty(1, *model.default_cfg["input_size"])
        channels, pool_size = model.num_features, model.default_cfg["pool_size"]
        for key in ("first_conv", "classifier"):
            assert f"{model.default_cfg[key]}.weight" in model.state_dict()
        assert model(images).shape == (1, model.default_cfg["num_classes"]) == (1, 1000)
        features = model.forward_features(images)
        assert features.shape == (1, channels, *pool_size)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (1, channels) == (1, model.head_hidden_size)

        model.reset_classifier(0)
        assert model.num_classes == 0
        assert isinstance(model.get_classifier(), nn.Identity)
        assert model(images).shape == (1, channels)
        model.reset_classifier(0, "")
        assert model(images).shape == (1, channels, *pool_size)
        model.reset_classifier(7, "catavgmax")
        assert model.head_hidden_size == model.get_classifier().in_features == 2 * channels
        assert model(images).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "out_indices"),
    [(name, (0, 1, 2, 3)) for name in NAMES]
    + [(name, out_indices) for name in SMALLEST for out_indices in ((1, 2), (-1,))],
)
def test_feature_info(name, out_indices):
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True, out_indices=out_indices)
        maps = model(torch.empty(1, 3, 70, 100))
    channels, strides = model.feature_info.channels(), model.feature_info.reduction()
    assert strides == [4 * 2 ** (i % 4) for i in out_indices]
    for one, dims, stride in zip(maps, channels, strides, strict=True):
        assert one.shape == (1, dims, math.ceil(70 / stride), math.ceil(100 / stride))
    # What comes after the last stage asked for is gone.
    assert len(model.model.stages) == max(i % 4 for i in out_indices) + 1
    assert not [key for key in model.state_dict() if "head" in key]


@pytest.mark.parametrize("name", SMALLEST)
def test_forward_and_backward(name):
    images = torch.randn(2, 3, 96, 64)
    gradients = {}
    for recompute in (False, True):
        model = create(name, num_classes=42, img_size=96).train()
        model.set_grad_checkpointing(recompute)
        logits = model(images)
        assert logits.shape == (2, 42)
        logits.square().sum().backward()
        gradients[recompute] = {n: p.grad for n, p in model.named_parameters()}
    assert not [n for n, gradient in gradients[False].items() if not gradient.any()]
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SMALLEST)
def test_intermediates_are_those_of_forward(name):
    model = create(name).eval()
    image = torch.randn(1, 3, 40, 72)
    with torch.no_grad():
        last, maps = model.forward_intermediates(image)
        assert torch.equal(last, model.forward_features(image))
        _, normed = model.forward_intermediates(image, norm=True)
        assert torch.equal(normed[LAST], last)
        for one, other in zip(maps[:LAST], normed[:LAST], strict=True):
            assert torch.equal(one, other)
        _, some = model.forward_intermediates(image, indices=[2, 0])
        stopped, early = model.forward_intermediates(image, indices=[2, 0], stop_early=True)
        for one, other, expected in zip(some, early, (maps[0], maps[2]), strict=True):
            assert torch.equal(one, expected)
            assert torch.equal(other, expected)
        assert torch.equal(stopped, maps[2])
        pruned = create(name, features_only=True, out_indices=(1, 3)).eval()
        for one, expected in zip(pruned(image), (maps[1], maps[3]), strict=True):
            assert torch.equal(one, expected)
    with pytest.raises(ValueError, match="output_fmt is 'NHWC'"):
        model.forward_intermediates(image, output_fmt="NHWC")


@pytest.mark.parametrize("name", SMALLEST)
def test_backbone_loads_the_weights_of_its_classifier(name, tmp_path):
    """By init_cfg alone, and gives the features that the classifier sees."""
    prefix, _, arch = name.rpartition("_")
    classifier = create(name, num_classes=10).eval()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "classifier.pth")}
    backbone = FAMILIES[prefix](arch, init_cfg=init_cfg).eval()
    backbone.init_weights()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features, expected = backbone(image), classifier.forward_intermediates(image)[1]
        if name == "slide_swin_tiny":
            assert torch.equal(features[LAST], classifier.forward_features(image))
        else:
            for one, other in zip(features, expected, strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("name", SMALLEST)
def test_optimizer_decays_no_position_table(name):
    model = create(name)
    parameters = {id(p): n for n, p in model.named_parameters()}
    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.05)
    for group in optimizer.param_groups:
        names = [parameters[id(p)] for p in group["params"]]
        tables = [n for n in names if "table" in n]
        assert len(tables) == 0 if group["weight_decay"] else tables


def test_nothing_is_pretrained():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for slide_swin_tiny"):
        timm.create_model("slide_swin_tiny", pretrained=True)
