"""The baselines, ``slide_stages=()``, are the models that everybody else trains."""

import re

import pytest
import timm
import torch
from mmdet.models.backbones import PyramidVisionTransformer

from slide_mm.models import SlidePVT, SlidePVTv2, SlideSwin


def rename(state_dict, *rules):
    """Apply (pattern, replacement) rules in their order to every name."""
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def randomise(model):
    """Make every weight matter, zeros and ones included."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def assert_same_features_and_gradients(ours, theirs, image):
    features, references = ours(image), theirs(image)
    for feature, reference in zip(features, references, strict=True):
        assert feature.shape == reference.shape
        assert (feature - reference).abs().max() < 1e-4 * reference.abs().max()
    gradients = []
    for outputs in (features, references):
        image.grad = None
        sum(output.square().mean() for output in outputs).backward()
        gradients.append(image.grad)
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


@pytest.mark.parametrize("size", [(224, 224), (250, 334)])
def test_pvtv2_is_timms(size):
    theirs = randomise(timm.create_model("pvt_v2_b2", features_only=True))
    ours = SlidePVTv2(arch="b2", slide_stages=()).eval()
    rules = (
        (r"^patch_embed", "stages.0.downsample"),
        ("^stages_", "stages."),
        (".attn.", ".mixer."),
    )
    ours.load_state_dict(rename(theirs.state_dict(), *rules))
    assert_same_features_and_gradients(ours, theirs, torch.randn(1, 3, *size, requires_grad=True))


def test_swin_is_timms():
    """timm's features come before the output norms, which its classifier doesn't have."""
    theirs = randomise(
        timm.create_model(
            "swin_tiny_patch4_window7_224", features_only=True, out_indices=(0, 1, 2, 3)
        )
    )
    ours = SlideSwin(arch="tiny", slide_stages=()).eval()
    for index in ours.out_norms:
        ours.out_norms[index] = torch.nn.Identity()
    rules = (
        (r"^patch_embed", "stages.0.downsample"),
        ("^layers_", "stages."),
        (".attn.", ".mixer."),
    )
    ours.load_state_dict(rename(theirs.state_dict(), *rules))
    assert_same_features_and_gradients(
        ours,
        lambda image: [feature.permute(0, 3, 1, 2) for feature in theirs(image)],
        torch.randn(1, 3, 224, 224, requires_grad=True),
    )


def from_mmdet_pvt(state_dict):
    """Names and shapes of MMDetection's PVT turned into ours."""
    rules = (
        (r"^layers\.(\d)\.0\.projection", r"stages.\1.downsample.proj"),
        (r"^layers\.(\d)\.0\.", r"stages.\1.downsample."),
        (r"^layers\.(\d)\.1\.0\.pos_embed", r"stages.\1.position.table"),
        (r"^layers\.(\d)\.1\.", r"stages.\1.blocks."),
        (r"\.attn\.attn\.out_proj", ".mixer.proj"),
        (r"\.attn\.", ".mixer."),
        (r"ffn\.layers\.0", "mlp.fc1"),
        (r"ffn\.layers\.3", "mlp.fc2"),
    )
    converted = {}
    for name, tensor in rename(state_dict, *rules).items():
        name = re.sub(r"blocks\.(\d+)", lambda match: f"blocks.{int(match[1]) - 1}", name)
        if name.endswith("table"):
            side = round(tensor.shape[1] ** 0.5)
            converted[name] = tensor.transpose(1, 2).unflatten(2, (side, side))
        elif "attn.in_proj_" in name:
            prefix, kind = name.split("attn.in_proj_")
            channels = len(tensor) // 3
            converted[f"{prefix}q.{kind}"] = tensor[:channels]
            converted[f"{prefix}kv.{kind}"] = tensor[channels:]
        else:
            converted[name] = tensor.flatten(1) if "mlp" in name and tensor.ndim > 1 else tensor
    return converted


@pytest.mark.parametrize("size", [(224, 224), (256, 352)])
def test_pvt_is_mmdets(size):
    theirs = randomise(PyramidVisionTransformer(num_layers=[2, 2, 2, 2]))
    ours = SlidePVT(arch="tiny", slide_stages=()).eval()
    ours.load_state_dict(from_mmdet_pvt(theirs.state_dict()))
    assert_same_features_and_gradients(ours, theirs, torch.randn(1, 3, *size, requires_grad=True))
