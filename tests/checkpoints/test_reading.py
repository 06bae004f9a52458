import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file
from torch import nn

from slide_mm.checkpoints import CheckpointError, get_state_dict, read_checkpoint


def test_reads_weights_of_a_training(tmp_path):
    model = nn.Linear(3, 4)
    weights = {f"module.backbone.{name}": value for name, value in model.state_dict().items()}
    torch.save({"meta": {"epoch": 3}, "state_dict": weights}, tmp_path / "training.pth")
    checkpoint = read_checkpoint(tmp_path / "training.pth")
    assert checkpoint["meta"] == {"epoch": 3}
    assert get_state_dict(checkpoint).keys() == {"backbone.weight", "backbone.bias"}
    backbone = get_state_dict(checkpoint, prefix="backbone.")
    assert backbone["weight"].equal(model.weight)
    assert not get_state_dict(checkpoint, prefix="neck.")


def test_reads_bare_weights(tmp_path):
    model = nn.Linear(3, 4)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert get_state_dict(read_checkpoint(tmp_path / "bare.pth")).keys() == {"weight", "bias"}


def test_takes_averaged_weights_first(tmp_path):
    entries = {key: {"weight": torch.full((1,), i)} for i, key in enumerate(["model", "model_ema"])}
    assert get_state_dict({"epoch": 3, **entries})["weight"] == 1
    assert get_state_dict({"model": entries["model"]})["weight"] == 0


def test_reads_safetensors_of_any_name(tmp_path):
    weights = nn.Linear(3, 4).state_dict()
    save_file(weights, tmp_path / "weights.bin")
    read = get_state_dict(read_checkpoint(tmp_path / "weights.bin"))
    assert all(torch.equal(read[name], weights[name]) for name in weights)


@pytest.fixture
def yacs_settings(monkeypatch):
    """Settings as the code of Swin and Slide-Swin saves them; yacs needn't be installed."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    settings = module.CfgNode(lr=0.001)
    settings.__dict__["frozen"] = True
    return settings


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_trainings_leave(tmp_path, monkeypatch, yacs_settings, legacy):
    hub = MessageHub.get_instance("of a training")
    hub.update_scalar("train/loss", 0.5)
    hub.update_info("metric", np.float64(0.25))
    weights = OrderedDict(weight=nn.Parameter(torch.randn(2, 3)), half=torch.ones(2).bfloat16())
    training = {
        "meta": {"iter": 7, "time": np.float32(1.5)},
        "message_hub": hub.state_dict(),
        "config": yacs_settings,
        "args": argparse.Namespace(lr=0.1),
        "state_dict": weights,
    }
    path = tmp_path / "training.pth"
    torch.save(training, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.delitem(sys.modules, "yacs.config")
    checkpoint = read_checkpoint(path)
    assert checkpoint["meta"]["iter"] == 7
    read = get_state_dict(checkpoint)
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert read["half"].dtype == torch.bfloat16


class Code:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("was here",)


@pytest.mark.parametrize("save", ["torch", "legacy torch", "pickle"])
def test_runs_no_code(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    checkpoint = {"state_dict": {"weight": torch.ones(1)}, "code": Code()}
    if save == "pickle":
        with open("evil.pth", "wb") as file:
            pickle.dump({"weight": 1, "code": Code()}, file)
    else:
        torch.save(checkpoint, "evil.pth", _use_new_zipfile_serialization=save == "torch")
    with pytest.raises(CheckpointError, match=r"^checkpoint evil.pth holds \w+.mkdir, which is"):
        read_checkpoint("evil.pth")
    assert os.listdir() == ["evil.pth"]


class Method:
    """What MMEngine's histories hold: a method got by name. Histories don't call it."""

    def __call__(self):
        pass

    def __reduce__(self):
        return getattr, (HistoryBuffer, "update")


class Call:
    def __reduce__(self):
        return Method(), ()


def test_calls_nothing_that_it_stands_in_for(tmp_path):
    torch.save({"weight": torch.ones(1), "method": Method()}, tmp_path / "harmless.pth")
    assert read_checkpoint(tmp_path / "harmless.pth")["weight"] == 1
    torch.save({"weight": torch.ones(1), "method": Call()}, tmp_path / "call.pth")
    with pytest.raises(CheckpointError, match=r"call.pth calls a Leftover, which no training does"):
        read_checkpoint(tmp_path / "call.pth")


def test_refuses_other_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.pth does not exist"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"is a folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"page.pth \(22 bytes\) cannot be read"):
        read_checkpoint(tmp_path / "page.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")


@pytest.mark.parametrize("save", [torch.save, save_file])
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_refuses_what_is_cut_off(tmp_path, save, share):
    path = tmp_path / "weights.pth"
    save(nn.Linear(100, 100).state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"weights.pth \(\d+ bytes\) cannot be read"):
        read_checkpoint(path)
