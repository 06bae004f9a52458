import pytest
import torch
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


def test_refuses_other_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.pth does not exist"):
        read_checkpoint(tmp_path / "nothing.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"page.pth \(22 bytes\) cannot be read"):
        read_checkpoint(tmp_path / "page.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
