"""NAT and DiNAT as their authors name and compute them, written anew from their words."""

import re

import pytest
import torch
from torch.nn import functional as F

from slide_mm.checkpoints import convert_state_dict
from slide_mm.models import SlideNAT
from slide_mm.ops.neighbourhood_attention import definition

DIMS, HEADS, DEPTHS, KERNEL_SIZE = (8, 16, 32, 64), (1, 2, 4, 8), (1, 2, 2, 1), 3
DILATIONS = ((1,), (1, 2), (2, 1), (1,))
ARCH = {"embed_dims": DIMS, "depths": DEPTHS, "num_heads": HEADS, "mlp_ratios": (3, 3, 3, 3)}
OPTIONS = {"neighbourhood_size": KERNEL_SIZE, "dilations": DILATIONS, "layer_scale": 1e-5}


def make_weights():
    """Of a classifier and of a detector at once; all factors of branches are near 1."""
    torch.manual_seed(0)
    shapes = {"patch_embed.proj.0": (4, 3, 3, 3), "patch_embed.proj.1": (8, 4, 3, 3)}
    shapes |= {"patch_embed.norm": (8,), "norm": (64,), "head": (5, 64)}
    weights = {}
    for stage, (dims, depth) in enumerate(zip(DIMS, DEPTHS, strict=True)):
        shapes[f"norm{stage}"] = (dims,)
        if stage < 3:
            name = f"levels.{stage}.downsample."
            weights[f"{name}reduction.weight"] = torch.randn(2 * dims, dims, 3, 3)
            shapes[f"{name}norm"] = (2 * dims,)
        for block in range(depth):
            name = f"levels.{stage}.blocks.{block}."
            shapes |= {f"{name}norm1": (dims,), f"{name}norm2": (dims,)}
            shapes |= {f"{name}attn.qkv": (3 * dims, dims), f"{name}attn.proj": (dims, dims)}
            shapes |= {f"{name}mlp.fc1": (3 * dims, dims), f"{name}mlp.fc2": (dims, 3 * dims)}
            weights[f"{name}attn.rpb"] = torch.randn(HEADS[stage], *[2 * KERNEL_SIZE - 1] * 2)
            for number in (1, 2):
                weights[f"{name}gamma{number}"] = 1 + 0.1 * torch.randn(dims)
    weights |= {f"{name}.weight": torch.randn(*shape) * 0.3 for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}


def layer(weights, name):
    return weights[f"{name}.weight"], weights.get(f"{name}.bias")


def norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], *layer(weights, name))


def halve(weights, name, x):
    image = x.permute(0, 3, 1, 2)
    return F.conv2d(image, *layer(weights, name), stride=2, padding=1).permute(0, 2, 3, 1)


def attend(weights, name, x, num_heads, dilation):
    height, width = x.shape[1:3]
    least = KERNEL_SIZE * dilation
    x = F.pad(x, (0, 0, 0, max(0, least - width), 0, max(0, least - height)))
    qkv = F.linear(x, *layer(weights, f"{name}qkv")).unflatten(-1, (3, num_heads, -1))
    out = definition(qkv, weights[f"{name}rpb"], dilation).float()[:, :height, :width]
    return F.linear(out.flatten(-2), *layer(weights, f"{name}proj"))


def authors_features(weights, image):
    x = halve(weights, "patch_embed.proj.0", image.permute(0, 2, 3, 1))
    x = norm(weights, "patch_embed.norm", halve(weights, "patch_embed.proj.1", x))
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            name, dilations = f"levels.{stage}.blocks.{block}.", DILATIONS[stage]
            branch = norm(weights, f"{name}norm1", x)
            branch = attend(weights, f"{name}attn.", branch, HEADS[stage], dilations[block])
            x = x + weights[f"{name}gamma1"] * branch
            branch = F.linear(norm(weights, f"{name}norm2", x), *layer(weights, f"{name}mlp.fc1"))
            branch = F.linear(F.gelu(branch), *layer(weights, f"{name}mlp.fc2"))
            x = x + weights[f"{name}gamma2"] * branch
        yield norm(weights, f"norm{stage}", x).permute(0, 3, 1, 2)
        if stage < 3:
            name = f"levels.{stage}.downsample."
            x = norm(weights, f"{name}norm", halve(weights, f"{name}reduction", x))


# In their order: the first that is in a name is replaced.
HUGGING_FACE = {
    "patch_embed.proj.": "nat.embeddings.patch_embeddings.projection.",
    "patch_embed.norm.": "nat.embeddings.norm.",
    "levels.": "nat.encoder.levels.",
    "norm.": "nat.layernorm.",
    "head.": "classifier.",
}
HUGGING_FACE_BLOCKS = {
    ".blocks.": ".layers.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.proj.": ".attention.output.dense.",
    ".attn.rpb": ".attention.self.rpb",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


def in_hugging_faces_names(weights):
    """Of a classifier's weights."""
    named = {}
    for name, tensor in weights.items():
        if name.endswith("gamma2"):
            continue
        old = next(key for key in HUGGING_FACE if name.startswith(key))
        new = HUGGING_FACE[old] + name.removeprefix(old)
        for old in HUGGING_FACE_BLOCKS if ".blocks." in name else ():
            new = new.replace(old, HUGGING_FACE_BLOCKS[old])
        if ".attn.qkv." in new:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[new.replace(".attn.qkv.", f".attention.self.{part}.")] = rows
        elif new.endswith("gamma1"):
            both = torch.stack([tensor, weights[name.replace("gamma1", "gamma2")]])
            named[new.replace("gamma1", "layer_scale_parameters")] = both
        else:
            named[new] = tensor
    return named


def load(weights, **options):
    model = SlideNAT(ARCH, **{**OPTIONS, **options}).eval()
    conversion = convert_state_dict(weights, model, "the authors'")
    model.load_state_dict(conversion.weights, strict=False)
    return model, conversion.report


@pytest.mark.parametrize("size", [(96, 160), (90, 50)], ids=["whole", "padded"])
@torch.no_grad()
def test_detector_has_the_authors_features(size):
    weights = {k: v for k, v in make_weights().items() if not k.startswith(("norm.", "head."))}
    ours, report = load({f"backbone.{name}": x for name, x in weights.items()}, slide_stages=())
    assert (report.source, report.coverage) == ("nat", 1)
    assert not report.initialised + report.left_over + report.resampled
    image = torch.randn(2, 3, *size)
    for ours_, theirs in zip(ours(image), authors_features(weights, image), strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max())


@pytest.mark.parametrize("slide_stages", [(), (0, 1)])
def test_names_of_authors_and_hugging_face_are_one_model(slide_stages):
    weights = {k: v for k, v in make_weights().items() if not re.match(r"norm\d", k)}
    model = SlideNAT(ARCH, **OPTIONS, slide_stages=slide_stages)
    options = {"keep_classifier": True}
    authors = convert_state_dict(weights, model, "the authors'", **options)
    theirs = convert_state_dict(in_hugging_faces_names(weights), model, "theirs", **options)
    assert (authors.report.source, theirs.report.source) == ("nat", "nat-huggingface")
    assert authors.weights.keys() == theirs.weights.keys() >= {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(authors.weights[name], x) for name, x in theirs.weights.items())
    theirs.report.require(0.9)
    if not slide_stages:
        assert not theirs.report.left_over + authors.report.left_over


def test_warm_start():
    """Sliding stages keep projections and factors, and leave tables over."""
    weights = make_weights()
    ours, report = load(weights)
    block = ours.stages[1].blocks[1]
    for name, tensor in (
        ("attn.qkv.weight", block.mixer.qkv.weight),
        ("attn.proj.bias", block.mixer.proj.bias),
        ("gamma2", block.scale2.gamma),
    ):
        assert torch.equal(tensor, weights[f"levels.1.blocks.1.{name}"])
    assert not block.mixer.deformed_kernel.any()
    left = {entry.name for entry in report.left_over}
    assert left >= {"levels.0.blocks.0.attn.rpb", "levels.1.blocks.1.attn.rpb", "head.bias"}
    report.require(0.9)


def test_tables_of_another_neighbourhood_are_resampled():
    weights = make_weights()
    ours, report = load(weights, neighbourhood_size=5)
    tables = {
        f"stages.{stage}.blocks.{block}.mixer.relative_position_bias_table"
        for stage in (2, 3)
        for block in range(DEPTHS[stage])
    }
    assert {entry.name for entry in report.resampled} == tables
    assert "(4, 5, 5) -> (4, 9, 9)" in str(report)
    expected = F.interpolate(weights["levels.3.blocks.0.attn.rpb"][None], (9, 9), mode="bicubic")
    assert torch.equal(ours.stages[3].blocks[0].mixer.relative_position_bias_table, expected[0])
