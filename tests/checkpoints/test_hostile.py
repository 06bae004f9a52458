import argparse
import copyreg
import io
import itertools
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from contextlib import suppress

import pytest
import torch
from torch import nn

from slide_mm.checkpoints import CheckpointError, get_state_dict, read_checkpoint
from tests.checkpoints import hostile


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder where a canary appears when code runs."""
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("os", "system", hostile.EXTENSION)
    yield tmp_path
    copyreg.remove_extension("os", "system", hostile.EXTENSION)


@pytest.mark.parametrize("way", ["REDUCE", "OBJ", "INST"])
@pytest.mark.parametrize("call", hostile.EFFECTIVE)
def test_the_draws_are_real(way, call, folder):
    pickled = hostile.draw_pickle(random.Random(0), call, way)
    try:
        pickle.loads(pickled)
    except TypeError:
        assert "canary" in str(call)  # Made, though what came of it was of no use.
    assert (folder / "canary").exists()


@pytest.mark.parametrize("container", hostile.CONTAINERS)
def test_runs_no_code(container, folder):
    before = dict(vars(argparse.Namespace))
    draw = random.Random(container.__name__)
    for call, way in itertools.product(hostile.CALLS, hostile.WAYS):
        container(hostile.draw_pickle(draw, call, way), folder / "evil.pth")
        with pytest.raises(CheckpointError, match=r"^checkpoint .*evil.pth ") as caught:
            read_checkpoint(folder / "evil.pth")
        assert "\n" not in str(caught.value)
        assert os.listdir() == ["evil.pth"], (call, way)
    assert dict(vars(argparse.Namespace)) == before


def whole_file(legacy=False):
    content = {"state_dict": nn.Linear(30, 40).state_dict(), "meta": {"epoch": 1, "name": "x" * 50}}
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return content["state_dict"], file.getvalue()


def test_a_flipped_bit_changes_no_weight(folder):
    """It is refused, or lies where it does nothing, such as in the padding."""
    weights, content = whole_file()
    draw, num_refused = random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / "flipped.pth").write_bytes(damaged)
        try:
            read = read_checkpoint("flipped.pth")["state_dict"]
        except CheckpointError:
            num_refused += 1
        else:
            assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert num_refused > 150


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_pickles_are_refused_or_read(legacy, folder):
    """Bytes of the pickle are overwritten, with a right CRC: no other error, no code, no wait."""
    content = whole_file(legacy)[1]
    if not legacy:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    draw = random.Random(0)
    for _ in range(300):
        pickled = bytearray(content if legacy else records["data.pkl"])
        for _ in range(draw.choice((1, 1, 2, 5, 20))):
            at = draw.randrange(len(pickled))
            pickled[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(4))
        if legacy:
            (folder / "damaged.pth").write_bytes(pickled)
        else:
            with zipfile.ZipFile("damaged.pth", "w") as archive:
                for name, record in {**records, "data.pkl": bytes(pickled)}.items():
                    archive.writestr(f"archive/{name}", record)
        with suppress(CheckpointError):
            read_checkpoint("damaged.pth")
        assert os.listdir() == ["damaged.pth"]


def test_takes_no_age(folder):
    """A key of tuples in tuples, each twice the one before, takes 2 ** 60 steps to hash."""
    key = b"K\x01" + b"q\x000h\x00h\x00\x86" * 60
    hostile.as_zip(b"\x80\x02}" + key + b"K\x01s.", folder / "slow.pth")
    with pytest.raises(CheckpointError, match="a tuple as a key"):
        read_checkpoint("slow.pth")
    level = {"weight": torch.ones(1)}
    for _ in range(60):
        level = {"model": level, "state_dict": level, "other": level}
    torch.save({"state_dict": {"weight": torch.ones(1)}, "other": level}, "slow.pth")
    assert get_state_dict(read_checkpoint("slow.pth"))["weight"] == 1


class Claim:
    """A tensor of other sizes than its storage."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def __reduce__(self):
        storage = torch.ones(8).untyped_storage()
        storage = torch.storage.TypedStorage(
            wrap_storage=storage, dtype=torch.float32, _internal=True
        )
        arguments = (storage, *self.sizes, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


@pytest.mark.parametrize(
    "sizes",
    [
        (0, (1 << 40,), (0,)),
        (0, (1 << 62, 1 << 62), (0, 0)),
        (0, (9,), (1,)),
        (1, (8,), (1,)),
        (0, (2, 2), (7, 1)),
    ],
)
def test_claims_no_memory(sizes, folder):
    torch.save({"weight": Claim(0, (2, 4), (4, 1)), "bias": Claim(7, (5,), (0,))}, "good.pth")
    assert read_checkpoint("good.pth")["bias"].tolist() == [1] * 5
    torch.save({"weight": Claim(*sizes)}, "claim.pth")
    with pytest.raises(CheckpointError, match="holds a tensor of size"):
        read_checkpoint("claim.pth")


def test_other_files(folder):
    os.mkfifo("pipe.pth")
    os.mkdir("folder.pth")
    os.symlink("/dev/zero", "device.pth")
    for name, problem in (("pipe", "is no file"), ("folder", "is a folder"), ("device", "no file")):
        with pytest.raises(CheckpointError, match=problem):
            read_checkpoint(f"{name}.pth")
    torch.jit.script(nn.Linear(3, 4)).save("script.pth")
    with pytest.raises(CheckpointError, match="is a program of TorchScript"):
        read_checkpoint("script.pth")
    content = whole_file()[1]
    compressed = zipfile.ZipFile("compressed.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(content)) as archive, compressed:
        for name in archive.namelist():
            compressed.writestr(name, archive.read(name))
    with pytest.raises(CheckpointError, match="is a compressed zip"):
        read_checkpoint("compressed.pth")
