import argparse
import pathlib
import random
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from slide_mm.checkpoints import (
    CheckpointError,
    convert_state_dict,
    get_state_dict,
    read_checkpoint,
    select_state_dict,
)
from slide_mm.models import SlidePVTv2
from tests.checkpoints.layouts import PVT

AVERAGED = ("state_dict_ema", "model_ema", "teacher")
WRAPPERS = ("state_dict", "model", "module", "net", "student")
PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "teacher.", "my_model.")
COPIES = ("encoder_k.", "momentum_encoder.", "target_network.")


def make_model():
    """With parts whose names are those of wrappers, and a counter."""
    parts = {"backbone": nn.Linear(3, 4), "encoder": nn.BatchNorm1d(4), "model": nn.Linear(4, 5)}
    return nn.ModuleDict({"stages": nn.ModuleDict(parts), "head": nn.Linear(5, 2)})


def fill(state_dict, value):
    return OrderedDict((name, torch.full_like(x, value)) for name, x in state_dict.items())


def below(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def draw_names(draw, weights):
    """Put weights below names, beside what self-supervised pretraining leaves there."""
    given = dict(weights)
    if draw.random() < 0.3:
        given = {
            name.replace("head.", draw.choice(("head.module.", "head._orig_mod."))): x
            for name, x in given.items()
        }
    for _ in range(draw.randrange(4)):
        given = below(draw.choice(PREFIXES), given)
        if draw.random() < 0.3:
            given |= below("decoder.0.", {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
        if draw.random() < 0.3:
            given |= below(draw.choice(COPIES), fill(weights, -2)) | {"queue": torch.zeros(9)}
    return given


def draw_wrappers(draw, given, weights):
    """Put weights below keys, beside what trainings leave and averaging comes from."""
    for _ in range(draw.randrange(4)):
        if draw.random() < 0.3:
            given = {draw.choice(AVERAGED): given, draw.choice(WRAPPERS): fill(weights, -1)}
        else:
            given = {draw.choice(WRAPPERS): given}
        if draw.random() < 0.5:
            moments = {i: {"exp_avg": tensor} for i, tensor in enumerate(weights.values())}
            given["optimizer"] = {"state": moments, "param_groups": [{"lr": 0.1}]}
        if draw.random() < 0.3:
            given["args"] = argparse.Namespace(out=pathlib.Path("runs"))
        if draw.random() < 0.3:
            given["ema_state_dict"] = below("module.", fill(weights, -3))
        if draw.random() < 0.3:
            given |= {"epoch": 3, "loss": torch.tensor(0.5), "config": {"model": {"type": "A"}}}
    return given


def test_finds_the_weights_in_any_wrapping(tmp_path):
    draw, model = random.Random(0), make_model()
    expected = model.state_dict()
    for number in range(200):
        torch.manual_seed(number)
        weights = OrderedDict(
            (name, torch.randn(x.shape) if x.is_floating_point() else x)
            for name, x in expected.items()
        )
        names = draw_names(draw, weights)
        if draw.random() < 0.2:
            save_file(names, tmp_path / "file")
        else:
            given, legacy = draw_wrappers(draw, names, weights), draw.random() < 0.3
            torch.save(given, tmp_path / "file", _use_new_zipfile_serialization=not legacy)
        found = select_state_dict(read_checkpoint(tmp_path / "file"), expected, "file")
        assert all(torch.equal(found[name], weights[name]) for name in weights), number


def test_finds_a_backbone_in_any_wrapping():
    draw, backbone = random.Random(0), SlidePVTv2(PVT)
    for number in range(20):
        torch.manual_seed(number)
        weights = OrderedDict((k, torch.randn(x.shape)) for k, x in backbone.state_dict().items())
        given = below("mask_", {"token": torch.zeros(1, 1, 8)}) | weights
        given = draw_wrappers(draw, draw_names(draw, given), given)
        conversion = convert_state_dict(get_state_dict(given), backbone, "file")
        assert all(torch.equal(conversion.weights[name], x) for name, x in weights.items())
        left_over = " ".join(entry.name for entry in conversion.report.left_over)
        assert "mask_token" in left_over
        assert conversion.report.coverage == 1


def test_two_that_are_equally_good_are_refused():
    model = make_model()
    given = below("a.", fill(model.state_dict(), 1)) | below("b.", fill(model.state_dict(), 2))
    with pytest.raises(CheckpointError, match=r"^file has the model below a\. and below b\.: save"):
        select_state_dict(given, model.state_dict(), "file")
    backbone = SlidePVTv2(PVT)
    given = below("a.", backbone.state_dict()) | below("b.", backbone.state_dict())
    with pytest.raises(CheckpointError, match=r"^file has a backbone below a\. and below b\.: "):
        convert_state_dict(given, backbone, "file")


def test_versions_of_modules_come_along(tmp_path):
    """By them modules of other libraries know older names of their weights."""
    model = nn.Sequential(OrderedDict(module=make_model()))
    torch.save({"model": model.state_dict()}, tmp_path / "file")
    found = get_state_dict(read_checkpoint(tmp_path / "file"))
    assert found._metadata["stages.encoder"] == {"version": 2}
    found = get_state_dict(model.state_dict(), "stages.")
    assert found._metadata["encoder"] == {"version": 2}


def sparse(tensor):
    return tensor.reshape(len(tensor), -1).to_sparse()


TURNS = {
    "NaN or infinite": [
        lambda x: x * float("nan"),
        lambda x: torch.where(x == x.max(), float("inf"), x),
        lambda x: torch.where(x == x.min(), -float("inf"), x),
        lambda x: x.double() + 1e300,
        lambda x: x.half() * float("inf"),
    ],
    "int64 numbers": [lambda x: x.long()],
    "uint8 numbers": [lambda x: x.byte()],
    "bool numbers": [lambda x: x.bool()],
    "complex64 numbers": [lambda x: x.to(torch.complex64)],
    "quantised": [lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)],
    "sparse": [sparse, lambda x: x.reshape(len(x), -1).to_sparse_csr()],
    "on device meta": [lambda x: x.to("meta")],
    "view": [torch._neg_view],
}


def take(checkpoint, model):
    if isinstance(model, SlidePVTv2):
        return convert_state_dict(get_state_dict(checkpoint, origin="file"), model, "file")
    return select_state_dict(checkpoint, model.state_dict(), "file")


@pytest.mark.parametrize("kind", TURNS)
def test_refuses_what_is_no_weight(kind, tmp_path):
    draw, model, backbone = random.Random(kind), make_model(), SlidePVTv2(PVT)
    for turn in TURNS[kind]:
        for target in (model, backbone):
            weights = dict(target.state_dict())
            floats = [name for name, x in weights.items() if x.is_floating_point()]
            name = draw.choice(floats)
            weights[name] = turn(torch.rand(weights[name].shape) + 0.5)
            torch.save({"model": weights}, tmp_path / "file")
            checkpoint = read_checkpoint(tmp_path / "file")
            with pytest.raises(CheckpointError, match=rf"^file has .*{kind}") as caught:
                take(checkpoint, target)
            assert f" {name}" in str(caught.value)


def test_refuses_names_that_are_none():
    model = make_model()
    weights = dict(model.state_dict())
    weights[7] = weights.pop("head.bias")
    with pytest.raises(CheckpointError, match="in 7: it is called by a int, not by a name"):
        select_state_dict(weights, model.state_dict(), "file")
    weights = {"x": torch.zeros(1), "module.x": torch.ones(1)}
    with pytest.raises(CheckpointError, match="in x: it is there twice"):
        get_state_dict(weights)


def test_a_mask_of_an_attention_may_be_infinite():
    model = nn.Module()
    model.register_buffer("attn_mask", torch.full((3, 3), -float("inf")).triu(1))
    model.register_parameter("bias", nn.Parameter(torch.zeros(3)))
    select_state_dict(model.state_dict(), model.state_dict(), "file")
    with pytest.raises(CheckpointError, match="infinite values in bias"):
        select_state_dict(
            {**model.state_dict(), "bias": torch.tensor([0, -float("inf"), 0])},
            model.state_dict(),
            "file",
        )
