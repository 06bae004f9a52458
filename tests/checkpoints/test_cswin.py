"""CSWin as its authors name and compute it, written anew from their words."""

import re

import pytest
import torch
from torch.nn import functional as F

from slide_mm.checkpoints import convert_state_dict, get_state_dict
from slide_mm.models import SlideCSWin

DIMS, HEADS, DEPTHS, WIDTHS = (8, 16, 32, 64), (2, 2, 4, 8), (1, 2, 1, 1), (1, 2, 3)
ARCH = {"embed_dims": DIMS, "depths": DEPTHS, "num_heads": HEADS}


def make_weights():
    """Of a classifier and of a segmentor at once."""
    torch.manual_seed(0)
    shapes = {"stage1_conv_embed.0": (8, 3, 7, 7), "stage1_conv_embed.2": (8,), "norm": (64,)}
    shapes["head"] = (5, 64)
    for stage, (dims, depth) in enumerate(zip(DIMS, DEPTHS, strict=True), 1):
        shapes[f"norm{stage}"] = (dims,)
        if stage > 1:
            shapes[f"merge{stage - 1}.conv"] = (dims, dims // 2, 3, 3)
            shapes[f"merge{stage - 1}.norm"] = (dims,)
        for block in range(depth):
            name = f"stage{stage}.{block}."
            shapes |= {f"{name}norm1": (dims,), f"{name}norm2": (dims,)}
            shapes |= {f"{name}qkv": (3 * dims, dims), f"{name}proj": (dims, dims)}
            shapes |= {f"{name}mlp.fc1": (4 * dims, dims), f"{name}mlp.fc2": (dims, 4 * dims)}
            for branch in range(1 if stage == 4 else 2):
                shapes[f"{name}attns.{branch}.get_v"] = (dims // (2 - (stage == 4)), 1, 3, 3)
    weights = {f"{name}.weight": torch.randn(*shape) * 0.3 for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}


class Authors:
    """Features of a segmentor, from its weights."""

    def __init__(self, weights):
        self.weights = weights

    def get(self, name):
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], *self.get(name))

    def convolve(self, name, x, **options):
        return F.conv2d(x.permute(0, 3, 1, 2), *self.get(name), **options).permute(0, 2, 3, 1)

    def attend(self, qkv, num_heads, lepe):
        """On one stripe, (B, h, w, 3, C)."""
        batch, height, width, _, dims = qkv.shape
        heads = qkv.reshape(batch, height * width, 3, num_heads, dims // num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) * (dims // num_heads) ** -0.5).softmax(-1)
        out = (weights @ value).transpose(1, 2).reshape(batch, height, width, dims)
        return out + self.convolve(lepe, qkv[:, :, :, 2], padding=1, groups=dims)

    def attend_in_columns(self, qkv, num_heads, lepe, width):
        missing = -qkv.shape[2] % width
        qkv = F.pad(qkv, (0, 0, 0, 0, missing // 2, missing - missing // 2))
        stripes = [self.attend(x, num_heads, lepe) for x in qkv.split(width, dim=2)]
        joined = torch.cat(stripes, dim=2)
        return joined[:, :, missing // 2 : joined.shape[2] - (missing - missing // 2)]

    def mix(self, name, x, stage):
        qkv = F.linear(x, *self.get(f"{name}qkv")).unflatten(-1, (3, -1))
        heads, lepe = HEADS[stage], f"{name}attns.{{}}.get_v"
        if stage == 3:
            return F.linear(self.attend(qkv, heads, lepe.format(0)), *self.get(f"{name}proj"))
        high, wide = qkv.chunk(2, dim=-1)
        high = self.attend_in_columns(high, heads // 2, lepe.format(0), WIDTHS[stage])
        # Rows are the columns of a map that is turned, and so is what the convolution sees.
        turned = Authors(
            {k: v.transpose(-1, -2) if v.ndim == 4 else v for k, v in self.weights.items()}
        )
        wide = turned.attend_in_columns(
            wide.transpose(1, 2), heads // 2, lepe.format(1), WIDTHS[stage]
        ).transpose(1, 2)
        return F.linear(torch.cat([high, wide], dim=-1), *self.get(f"{name}proj"))

    def features(self, image):
        x = image.permute(0, 2, 3, 1)
        for stage, depth in enumerate(DEPTHS):
            if stage == 0:
                x = self.convolve("stage1_conv_embed.0", x, stride=4, padding=2)
                x = self.norm("stage1_conv_embed.2", x)
            else:
                x = self.convolve(f"merge{stage}.conv", x, stride=2, padding=1)
                x = self.norm(f"merge{stage}.norm", x)
            for block in range(depth):
                name = f"stage{stage + 1}.{block}."
                x = x + self.mix(name, self.norm(f"{name}norm1", x), stage)
                hidden = F.linear(self.norm(f"{name}norm2", x), *self.get(f"{name}mlp.fc1"))
                x = x + F.linear(F.gelu(hidden), *self.get(f"{name}mlp.fc2"))
            yield self.norm(f"norm{stage + 1}", x).permute(0, 3, 1, 2)


def load(weights, **options):
    model = SlideCSWin(ARCH, stripe_widths=WIDTHS, **options).eval()
    conversion = convert_state_dict(weights, model, "the authors'")
    model.load_state_dict(conversion.weights, strict=False)
    return model, conversion.report


@pytest.mark.parametrize("size", [(96, 96), (92, 148)], ids=["whole", "padded"])
@torch.no_grad()
def test_segmentor_has_the_authors_features(size):
    weights = {k: v for k, v in make_weights().items() if not k.startswith(("norm.", "head."))}
    ours, report = load({f"backbone.{name}": x for name, x in weights.items()}, slide_stages=())
    assert (report.source, report.coverage) == ("cswin", 1)
    assert not report.initialised + report.left_over
    image = torch.randn(2, 3, *size)
    for ours_, theirs in zip(ours(image), Authors(weights).features(image), strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max())


def test_classifier_and_warm_start():
    """Averaged weights come first, and sliding stages keep projections."""
    weights = {k: v for k, v in make_weights().items() if not re.match(r"norm\d", k)}
    file = {"state_dict": {k: x + 1 for k, x in weights.items()}, "state_dict_ema": weights}
    ours, report = load(get_state_dict(file))
    assert torch.equal(ours.out_norms["3"].weight, weights["norm.weight"])
    assert torch.equal(ours.stages[0].blocks[0].mixer.qkv.weight, weights["stage1.0.qkv.weight"])
    assert not ours.stages[1].blocks[1].mixer.deformed_kernel.any()
    left = {entry.name for entry in report.left_over}
    assert left >= {"stage1.0.attns.0.get_v.weight", "stage2.1.attns.1.get_v.bias", "head.bias"}
    report.require(0.9)
