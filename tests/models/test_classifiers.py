"""timm's generic checks of a vision model, and what the classifiers promise beyond them."""

import math

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from tests.models.archs import FAMILY, narrow

LAST = 3


def create(family, **options):
    """timm's first entry point of a family, with fewer channels and blocks."""
    torch.manual_seed(0)
    name = f"{family.timm_name}_{next(iter(family.backbone.arch_zoo))}"
    return timm.create_model(name, arch=narrow(family), drop_path_rate=0.0, **options)


@FAMILY
def test_default_cfg(family):
    """Shapes alone, on tensors without memory."""
    with torch.device("meta"):
        model = create(family)
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


@FAMILY
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (-1,)])
def test_feature_info(family, out_indices):
    with torch.device("meta"):
        model = create(family, features_only=True, out_indices=out_indices)
        maps = model(torch.empty(1, 3, 70, 100))
    channels, strides = model.feature_info.channels(), model.feature_info.reduction()
    assert strides == [4 * 2 ** (i % 4) for i in out_indices]
    for one, dims, stride in zip(maps, channels, strides, strict=True):
        assert one.shape == (1, dims, math.ceil(70 / stride), math.ceil(100 / stride))
    # What comes after the last stage asked for is gone.
    assert len(model.model.stages) == max(i % 4 for i in out_indices) + 1
    assert not [key for key in model.state_dict() if "head" in key]


@FAMILY
def test_forward_and_backward(family):
    images = torch.randn(2, 3, 96, 64)
    gradients = {}
    for recompute in (False, True):
        model = create(family, num_classes=42, img_size=96).train()
        model.set_grad_checkpointing(recompute)
        logits = model(images)
        assert logits.shape == (2, 42)
        logits.square().sum().backward()
        gradients[recompute] = {n: p.grad for n, p in model.named_parameters()}
    assert not [n for n, gradient in gradients[False].items() if not gradient.any()]
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-4, atol=1e-6)


@FAMILY
def test_intermediates_are_those_of_forward(family):
    model = create(family).eval()
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
        pruned = create(family, features_only=True, out_indices=(1, 3)).eval()
        for one, expected in zip(pruned(image), (maps[1], maps[3]), strict=True):
            assert torch.equal(one, expected)
    with pytest.raises(ValueError, match="output_fmt is 'NHWC'"):
        model.forward_intermediates(image, output_fmt="NHWC")


@FAMILY
def test_backbone_loads_the_weights_of_its_classifier(family, tmp_path):
    """By init_cfg alone, and gives the features that the classifier sees."""
    classifier = create(family, num_classes=10).eval()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    path = str(tmp_path / "classifier.pth")
    backbone = family.backbone(narrow(family), pretrained=path).eval()
    backbone.init_weights()
    image = torch.randn(1, 3, 64, 64)
    if isinstance(backbone.out_norms[str(LAST)], nn.Identity):  # Then it is the classifier's own.
        backbone.out_norms[str(LAST)] = classifier.out_norms[str(LAST)]
    with torch.no_grad():
        assert torch.equal(backbone(image)[LAST], classifier.forward_features(image))


@FAMILY
def test_optimizer_decays_no_position_table(family):
    model = create(family)
    parameters = {id(p): n for n, p in model.named_parameters()}
    optimizer = create_optimizer_v2(model, opt="adamw", weight_decay=0.05)
    for group in optimizer.param_groups:
        names = [parameters[id(p)] for p in group["params"]]
        tables = [n for n in names if "table" in n]
        assert len(tables) == 0 if group["weight_decay"] else tables


def test_nothing_is_pretrained():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for slide_swin_tiny"):
        timm.create_model("slide_swin_tiny", pretrained=True)
