import pytest
import torch
from torch import nn

from slide_mm.checkpoints import (
    CheckpointMismatchError,
    check_state_dict_fits,
    compare_state_dicts,
)
from slide_mm.models import SlidePVTv2


def state_dict(**shapes):
    return {name.replace("_", "."): torch.zeros(shape) for name, shape in shapes.items()}


def test_counts_what_fits():
    expected = state_dict(stem_weight=(4, 3), stem_bias=4, head_weight=(9, 4))
    given = state_dict(stem_weight=(4, 3), stem_bias=8, stem_scale=1, neck_weight=(2, 2))
    fit = compare_state_dicts(expected, given)
    assert fit.num_fitting == 1
    assert fit.mismatched == (("stem.bias", (8,), (4,)),)
    assert fit.missing == ("head.weight",)
    # The neck is not a part of the model, the stem is.
    assert fit.unexpected == ("stem.scale",)
    assert fit.fraction == 1 / 4


def test_counters_are_not_weights():
    norm = nn.BatchNorm2d(3).state_dict()
    older = {name: value for name, value in norm.items() if name != "num_batches_tracked"}
    assert compare_state_dicts(norm, older).fraction == 1
    without_statistics = {name: older[name] for name in ("weight", "bias")}
    assert compare_state_dicts(norm, without_statistics).missing == ("running_mean", "running_var")


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
