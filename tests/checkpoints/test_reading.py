import argparse
import datetime
import functools
import http.server
import pathlib
import random
import sys
import threading
import types
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file
from torch import nn

from slide_mm.checkpoints import (
    CheckpointError,
    fetching,
    get_state_dict,
    is_lifeless,
    read_checkpoint,
)


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


def draw_state(draw, depth=0):
    """What trainings save: plain values in dicts, lists and tuples."""
    leaves = [
        lambda: draw.choice(
            (None, True, False, 0, -1, 1 << 70, 0.5, float("inf"), "", "ä\n", b"\0")
        ),
        lambda: draw.choice((np.float64(0.25), np.float32(3), np.int64(-7), np.bool_(True))),
        lambda: np.arange(6).reshape(2, 3).astype(draw.choice(("f4", "f8", "i8", "u1", "?"))),
        lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        lambda: np.array(["a", "bc"]),
        lambda: torch.arange(6).view(2, 3).to(draw.choice((torch.half, torch.int8, torch.bool))),
        lambda: torch.randn(4, 6)[::2, 1::2],
        lambda: torch.empty(0, 3),
        lambda: torch.zeros(1).expand(5),
        lambda: HistoryBuffer([0.5, 1.0], [1, 2], 10),
        lambda: Counter([8, 11]),
        lambda: deque([1, 2], 3),
        lambda: {"a", "b"},
        lambda: torch.Size((2, 3)),
        lambda: ConfigDict(type="A", size=(1, 2)),
    ]
    if depth == 4 or draw.random() < 0.4:
        return draw.choice(leaves)()
    items = [draw_state(draw, depth + 1) for _ in range(draw.randrange(4))]
    keys = draw.sample((0, "a", (1, "b"), None, 2.5), len(items))
    pairs = list(zip(keys, items, strict=True))
    return draw.choice((items, tuple(items), dict(pairs), OrderedDict(pairs)))


def is_same(given, read):
    if isinstance(given, torch.Tensor):
        return torch.equal(given, read) and given.dtype == read.dtype
    if isinstance(given, np.ndarray | np.generic):
        is_same_kind = type(given) is type(read) and given.dtype == read.dtype
        return is_same_kind and np.array_equal(given, read)
    if isinstance(given, HistoryBuffer):
        buffers = zip(given.data, read.data, strict=True)
        return given.max_length == read.max_length and all(is_same(*pair) for pair in buffers)
    if isinstance(given, dict):
        kind = dict if isinstance(given, ConfigDict) else type(given)
        is_same_kind = type(read) is kind and list(read) == list(given)
        return is_same_kind and all(is_same(given[key], read[key]) for key in given)
    if type(given) is not type(read):
        return False
    if isinstance(given, list | tuple):
        return all(is_same(*pair) for pair in zip(given, read, strict=True))
    return given == read


def test_rebuilds_the_plain_state_of_trainings(tmp_path):
    draw = random.Random(0)
    for number in range(200):
        state = {"state": draw_state(draw), "again": draw_state(draw)}
        state["twice"] = [state["again"], state["again"]]
        torch.save(
            state,
            tmp_path / "state.pth",
            pickle_protocol=draw.randrange(2, 6),
            _use_new_zipfile_serialization=draw.random() < 0.7,
        )
        read = read_checkpoint(tmp_path / "state.pth")
        assert is_same(state, read), (number, state, read)


def test_what_else_trainings_leave_is_lifeless(tmp_path):
    left = {
        "path": pathlib.PurePosixPath("runs"),
        "windows": pathlib.PureWindowsPath("runs"),
        "time": datetime.datetime(2024, 1, 1),
        "args": argparse.Namespace(lr=0.1),
        "method": HistoryBuffer.mean,
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "when": np.array(["2024-01-01"], dtype="datetime64[D]"),
        "objects": np.array([None, "a"], dtype=object),
        "big-endian": np.arange(3).astype(">i4"),
    }
    for protocol in (2, 4):
        torch.save({**left, "weight": torch.ones(1)}, tmp_path / "a.pth", pickle_protocol=protocol)
        read = read_checkpoint(tmp_path / "a.pth")
        assert read.pop("weight") == 1
        assert [key for key in read if not is_lifeless(read[key])] == []


def test_reads_a_file_without_checksums(tmp_path):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this PyTorch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.arange(5.0)}, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "weights.pth")["weight"].tolist() == [0, 1, 2, 3, 4]


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


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of a folder, and the folder."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", folder
        served.shutdown()


def test_fetches_addresses(server, monkeypatch):
    address, folder = server
    catalogues = {"mmcls": lambda: {"swin": f"{address}/swin-0123abcd.pth"}}
    monkeypatch.setattr(fetching, "_CATALOGUES", catalogues)
    for value in (1.0, 2.0):
        for name in ("weights.pth", "swin-0123abcd.pth"):
            torch.save({"weight": torch.tensor(value)}, folder / name)
        assert read_checkpoint(f"{address}/weights.pth")["weight"] == value
        # Such a name is that of one file.
        assert read_checkpoint(f"{address}/swin-0123abcd.pth")["weight"] == 1
        assert read_checkpoint("mmcls://swin")["weight"] == 1
    for path in (f"{address}/nothing.pth", "mmcls://nothing", "ftp://127.0.0.1/a.pth"):
        with pytest.raises(CheckpointError, match=f"^checkpoint {path} cannot be fetched"):
            read_checkpoint(path)
