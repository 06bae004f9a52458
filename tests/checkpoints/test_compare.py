import pytest
import torch
from torch import nn

from slide_mm.checkpoints import CheckpointMismatchError, check_state_dict_fits
from slide_mm.models import SlidePVTv2


def test_counts_what_fits_in_the_parts_of_the_model():
    model = nn.ModuleDict({"stem": nn.Linear(3, 4), "head": nn.Linear(4, 9, bias=False)})
    given = {"stem.weight": (4, 3), "stem.bias": (8,), "stem.scale": (1,), "neck.weight": (2, 2)}
    given = {name: torch.zeros(shape) for name, shape in given.items()}
    for name, problem in (
        ("stem.bias", r"stem.bias is \(8,\) in the checkpoint and \(4,\) in the model"),
        ("head.weight", "head.weight is not in the checkpoint"),
        ("stem.scale", "stem.scale is not in the model"),
    ):
        with pytest.raises(CheckpointMismatchError, match=rf"of 4 tensors fit .*misfit: {problem}"):
            check_state_dict_fits(model, given, "file")
        given = {k: x for k, x in given.items() if k != name}
        given |= {k: x for k, x in model.state_dict().items() if k == name}
    check_state_dict_fits(model, given, "file")


def test_counters_are_not_weights():
    norm = nn.BatchNorm2d(3)
    older = {name: x for name, x in norm.state_dict().items() if name != "num_batches_tracked"}
    check_state_dict_fits(norm, older, "file")
    with pytest.raises(CheckpointMismatchError, match="running_mean is not in the checkpoint"):
        check_state_dict_fits(norm, {name: older[name] for name in ("weight", "bias")}, "file")


def test_message_has_count_and_both_shapes():
    model, other = SlidePVTv2("b0"), SlidePVTv2("b1")
    with pytest.raises(CheckpointMismatchError) as error:
        check_state_dict_fits(model, other.state_dict(), "b1.pth")
    message = str(error.value)
    assert message.startswith("b1.pth does not fit SlidePVTv2: 4 of 164 tensors fit (2%")
    assert "stages.0.downsample.proj.weight is (64, 3, 7, 7) in the checkpoint" in message
    assert "(32, 3, 7, 7) in the model" in message


def test_deeper_model_of_the_same_width_does_not_fit():
    """It has all tensors of the shallower one, and more."""
    shallow, deep = (
        nn.ModuleDict({"blocks": nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth)))})
        for depth in (2, 3)
    )
    with pytest.raises(CheckpointMismatchError, match=r"blocks.2.weight is not in the model"):
        check_state_dict_fits(shallow, deep.state_dict(), "deep.pth")


@pytest.mark.parametrize(("minimum", "fits"), [(0.5, True), (0.51, False)])
def test_minimum(minimum, fits):
    model = nn.Linear(3, 4)
    half = {"weight": torch.zeros(4, 3)}
    if fits:
        check_state_dict_fits(model, half, "half.pth", minimum)
    else:
        with pytest.raises(CheckpointMismatchError):
            check_state_dict_fits(model, half, "half.pth", minimum)


def test_nothing_never_fits():
    with pytest.raises(CheckpointMismatchError):
        check_state_dict_fits(nn.Linear(3, 4), {}, "empty.pth", minimum=0)
