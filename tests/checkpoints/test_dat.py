"""DAT and DAT++ as their authors name and compute them, written anew from their words."""

import math

import pytest
import torch
from torch.nn import functional as F

from slide_mm.checkpoints import convert_state_dict
from slide_mm.models import SlideDAT
from slide_mm.ops.neighbourhood_attention import definition

DIMS, HEADS, DEPTHS, GROUPS = (8, 16, 32, 64), (2, 2, 4, 8), (2, 2, 2, 2), (1, 1, 2, 4)
ARCH = {"embed_dims": DIMS, "depths": DEPTHS, "num_heads": HEADS, "num_groups": GROUPS}
KERNELS, STRIDES = (9, 7, 5, 3), (8, 4, 2, 1)
WINDOW, IMAGE = 3, 96
LETTERS = {False: ("LS", "LS", "LD", "LD"), True: ("ND", "ND", "ND", "DD")}


def mixer_shapes(letter, stage):
    dims, heads, group = DIMS[stage], HEADS[stage], DIMS[stage] // GROUPS[stage]
    if letter in "LS":
        shapes = {"proj_qkv": (3 * dims, dims), "proj_out": (dims, dims)}
        return shapes, {"relative_position_bias_table": ((2 * WINDOW - 1) ** 2, heads)}
    if letter == "N":
        return {"qkv": (3 * dims, dims), "proj": (dims, dims)}, {"rpb": (heads, 13, 13)}
    shapes = {f"proj_{x}": (dims, dims, 1, 1) for x in ("q", "k", "v", "out")}
    shapes["conv_offset.0"] = (group, 1, KERNELS[stage], KERNELS[stage])
    shapes["conv_offset.1.norm"] = (group,)
    side = 2 * (IMAGE // (4 * 2**stage)) - 1
    offsets = {"conv_offset.3.weight": (2, group, 1, 1)}
    return shapes, {"rpe_table": (heads, side, side), **offsets}


def make_weights(plus):
    """Of a detector."""
    torch.manual_seed(0)
    # Those with a bias, and those without.
    shapes, alone = {}, {}
    if plus:
        shapes |= {"patch_proj.0": (4, 3, 3, 3), "patch_proj.1.norm": (4,)}
        shapes |= {"patch_proj.3": (8, 4, 3, 3), "patch_proj.4.norm": (8,)}
    else:
        shapes |= {"patch_proj.0": (8, 3, 4, 4), "patch_proj.1.norm": (8,)}
    for stage, dims in enumerate(DIMS):
        if stage:
            side = 3 if plus else 2
            alone[f"down_projs.{stage - 1}.0.weight"] = (dims, dims // 2, side, side)
            shapes[f"down_projs.{stage - 1}.1.norm"] = (dims,)
        shapes[f"norms.{stage}.norm"] = (dims,)
        name = f"stages.{stage}."
        for block, letter in enumerate(LETTERS[plus][stage]):
            layers, tensors = mixer_shapes(letter, stage)
            shapes |= {f"{name}attns.{block}.{key}": x for key, x in layers.items()}
            alone |= {f"{name}attns.{block}.{key}": x for key, x in tensors.items()}
            shapes |= {f"{name}layer_norms.{2 * block + i}.norm": (dims,) for i in range(2)}
            mlp, point = f"{name}mlps.{block}.", (1, 1) if plus else ()
            first, second = (
                ("linear1.0", "linear2.0") if plus else ("chunk.linear1", "chunk.linear2")
            )
            shapes[mlp + first] = (4 * dims, dims, *point)
            shapes[mlp + second] = (dims, 4 * dims, *point)
            if plus:
                shapes[f"{mlp}dwc"] = (4 * dims, 1, 3, 3)
                shapes[f"{name}local_perception_units.{block}"] = (dims, 1, 3, 3)
    weights = {f"{name}.weight": torch.randn(*shape) * 0.4 for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    return weights | {name: torch.randn(*shape) for name, shape in alone.items()}


class Authors:
    """Features of a detector, from its weights; maps are (B, C, H, W)."""

    def __init__(self, weights, plus):
        self.weights, self.plus = weights, plus

    def convolve(self, name, x, **options):
        """By a convolution, or a linear layer as one."""
        weight = self.weights[f"{name}.weight"]
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        return F.conv2d(x, weight, self.weights.get(f"{name}.bias"), **options)

    def norm(self, name, x):
        weight, bias = (self.weights[f"{name}.norm.{kind}"] for kind in ("weight", "bias"))
        return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias).movedim(-1, 1)

    def windows(self, name, x, heads, shift):
        """Of shifted maps that are filled up with zeros, those in one region attend."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % WINDOW, 0, -height % WINDOW))
        x = x.roll((-shift, -shift), (2, 3))
        ends = [(side - WINDOW, side - shift) for side in x.shape[2:]]
        qkv = self.convolve(f"{name}proj_qkv", x)
        out = torch.zeros_like(x)
        table = self.weights[f"{name}relative_position_bias_table"]
        places = [(i, j) for i in range(WINDOW) for j in range(WINDOW)]
        index = [
            (a[0] - b[0] + WINDOW - 1) * (2 * WINDOW - 1) + a[1] - b[1] + WINDOW - 1
            for a in places
            for b in places
        ]
        bias = table[index].view(len(places), len(places), heads).permute(2, 0, 1)
        for top in range(0, x.shape[2], WINDOW):
            for left in range(0, x.shape[3], WINDOW):
                regions = [
                    tuple(
                        sum(start + p >= end for end in ends_) * (shift > 0)
                        for start, p, ends_ in zip((top, left), place, ends, strict=True)
                    )
                    for place in places
                ]
                apart = torch.tensor([[a != b for b in regions] for a in regions])
                window = qkv[:, :, top : top + WINDOW, left : left + WINDOW].flatten(2)
                query, key, value = window.unflatten(1, (3, heads, -1)).unbind(1)
                logits = query.transpose(-1, -2) @ key * query.shape[2] ** -0.5 + bias
                weights = (logits - 100 * apart).softmax(-1)
                mixed = (value @ weights.transpose(-1, -2)).flatten(1, 2)
                mixed = mixed.unflatten(2, (WINDOW, WINDOW))
                out[:, :, top : top + WINDOW, left : left + WINDOW] = mixed
        out = self.convolve(f"{name}proj_out", out.roll((shift, shift), (2, 3)))
        return out[:, :, :height, :width]

    def neighbours(self, name, x, heads):
        height, width = x.shape[2:]
        x = F.pad(x, (0, max(0, 7 - width), 0, max(0, 7 - height)))
        qkv = self.convolve(f"{name}qkv", x).unflatten(1, (3, heads, -1)).permute(0, 4, 5, 1, 2, 3)
        out = definition(qkv, self.weights[f"{name}rpb"]).flatten(3).movedim(-1, 1).to(x.dtype)
        return self.convolve(f"{name}proj", out[:, :, :height, :width])

    def points(self, name, x, stage):
        heads, groups, kernel = HEADS[stage], GROUPS[stage], KERNELS[stage]
        height, width = x.shape[2:]
        query = self.convolve(f"{name}proj_q", x)
        split = query.unflatten(1, (groups, -1)).flatten(0, 1)
        options = {"padding": kernel // 2, "groups": split.shape[1]}
        stride = STRIDES[stage] if self.plus else 1
        offsets = self.convolve(f"{name}conv_offset.0", split, stride=stride, **options)
        offsets = F.gelu(self.norm(f"{name}conv_offset.1", offsets))
        offsets = self.convolve(f"{name}conv_offset.3", offsets)
        axes = []
        for axis, side in enumerate(offsets.shape[2:]):
            place = (torch.arange(side) + 0.5).view(-1, *[1] * (1 - axis))
            move = offsets[:, axis]
            if self.plus:
                axes.append((2 * place / (side - 1) - 1 + move).clamp(-1, 1))
            else:
                axes.append(2 * place / side - 1 + 2 * move.tanh() / side)
        sample = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": True}
        maps = x.unflatten(1, (groups, -1)).flatten(0, 1)
        sampled = F.grid_sample(maps, torch.stack(axes[::-1], -1), **sample)
        sampled = sampled.unflatten(0, (-1, groups)).flatten(1, 2)
        key, value = (self.convolve(f"{name}proj_{x}", sampled).flatten(2) for x in "kv")
        grids = []
        for axis, side in enumerate((height, width)):
            place = torch.arange(side).view(-1, *[1] * (2 - axis))
            grid = 2 * place / (side - 1) - 1 if self.plus else 2 * (place + 0.5) / side - 1
            grids.append((grid - axes[axis].flatten(1)[:, None, None]) / 2)
        grids = torch.stack(torch.broadcast_tensors(*grids[::-1]), -1).flatten(1, 2)
        table = self.weights[f"{name}rpe_table"].unflatten(0, (groups, -1))
        tables = table.repeat(len(x), 1, 1, 1)
        bias = F.grid_sample(tables, grids, **sample).unflatten(0, (-1, groups)).flatten(1, 2)
        query, key, value = (y.flatten(2).unflatten(1, (heads, -1)) for y in (query, key, value))
        logits = query.transpose(-1, -2) @ key / math.sqrt(query.shape[2]) + bias
        mixed = value @ logits.softmax(-1).transpose(-1, -2)
        return self.convolve(f"{name}proj_out", mixed.flatten(1, 2).unflatten(2, (height, width)))

    def mix(self, letter, name, x, stage):
        if letter == "D":
            return self.points(name, x, stage)
        if letter == "N":
            return self.neighbours(name, x, HEADS[stage])
        return self.windows(name, x, HEADS[stage], shift=2 if letter == "S" else 0)

    def mlp(self, name, x):
        if not self.plus:
            hidden = F.gelu(self.convolve(f"{name}chunk.linear1", x))
            return self.convolve(f"{name}chunk.linear2", hidden)
        hidden = self.convolve(f"{name}linear1.0", x)
        hidden = hidden + self.convolve(f"{name}dwc", hidden, padding=1, groups=hidden.shape[1])
        return self.convolve(f"{name}linear2.0", F.gelu(hidden))

    def features(self, x):
        options = {"stride": 2, "padding": 1} if self.plus else {"stride": 4}
        x = self.norm("patch_proj.1", self.convolve("patch_proj.0", x, **options))
        if self.plus:
            x = self.convolve("patch_proj.3", F.gelu(x), **options)
            x = self.norm("patch_proj.4", x)
        for stage, letters in enumerate(LETTERS[self.plus]):
            if stage:
                options = {"stride": 2, "padding": int(self.plus)}
                x = self.convolve(f"down_projs.{stage - 1}.0", x, **options)
                x = self.norm(f"down_projs.{stage - 1}.1", x)
            for block, letter in enumerate(letters):
                name = f"stages.{stage}."
                if self.plus:
                    local = f"{name}local_perception_units.{block}"
                    x = x + self.convolve(local, x, padding=1, groups=DIMS[stage])
                y = self.norm(f"{name}layer_norms.{2 * block}", x)
                x = x + self.mix(letter, f"{name}attns.{block}.", y, stage)
                y = self.norm(f"{name}layer_norms.{2 * block + 1}", x)
                x = x + self.mlp(f"{name}mlps.{block}.", y)
            yield self.norm(f"norms.{stage}", x)


def load(weights, plus, **options):
    options = {"window_size": WINDOW, "pretrain_img_size": IMAGE, "plus": plus, **options}
    model = SlideDAT(ARCH, **options).eval()
    conversion = convert_state_dict(weights, model, "the authors'")
    model.load_state_dict(conversion.weights, strict=False)
    return model, conversion.report


@pytest.mark.parametrize(
    ("plus", "size"), [(False, (96, 96)), (False, (128, 160)), (True, (96, 96)), (True, (100, 132))]
)
@torch.no_grad()
def test_detector_has_the_authors_features(plus, size):
    weights = make_weights(plus)
    ours, report = load({f"backbone.{k}": x for k, x in weights.items()}, plus, slide_stages=())
    assert (report.source, report.coverage) == ("dat", 1)
    assert not report.initialised + report.left_over
    image = torch.randn(2, 3, *size)
    for ours_, theirs in zip(ours(image), Authors(weights, plus).features(image), strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-4, atol=2e-5 * theirs.abs().max())


def test_tables_of_other_images_are_resampled_and_told():
    """Of windows and points, as pictures."""
    _, report = load(make_weights(False), False, window_size=5, pretrain_img_size=128)
    tables = {f"stages.{stage}.blocks.{block}" for stage in (2, 3) for block in (0, 1)}
    names = {x.name for x in report.resampled}
    assert names == {f"{table}.mixer.relative_position_bias_table" for table in tables}
    assert (
        "stages.2.blocks.*.mixer.relative_position_bias_table  (4, 11, 11) -> (4, 15, 15)"
        in str(report)
    )


@pytest.mark.parametrize("plus", [False, True])
def test_classifier_and_warm_start(plus):
    """Sliding stages take over the projections of windows, neighbours and points."""
    weights = {k: x for k, x in make_weights(plus).items() if not k.startswith("norms.")}
    weights |= {"cls_norm.norm.weight": torch.randn(64), "cls_norm.norm.bias": torch.randn(64)}
    weights |= {"cls_head.weight": torch.randn(5, 64), "cls_head.bias": torch.randn(5)}
    ours, report = load(weights, plus, slide_stages=(0, 1, 3))
    report.require(0.9)
    assert not report.misplaced
    assert torch.equal(ours.out_norms["3"].weight, weights["cls_norm.norm.weight"])
    mixer = ours.stages[3].blocks[1].mixer
    parts = [weights[f"stages.3.attns.1.proj_{x}.bias"] for x in "qkv"]
    assert torch.equal(mixer.qkv.bias, torch.cat(parts))
    assert not mixer.deformed_kernel.any()
    left = {entry.name for entry in report.left_over}
    assert left >= {"stages.3.attns.1.rpe_table", "stages.3.attns.1.conv_offset.0.bias"}
