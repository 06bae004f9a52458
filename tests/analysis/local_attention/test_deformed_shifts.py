import pytest
import torch

from slide_mm.analysis.local_attention.deformed_shifts import (
    centres_of_mass,
    check_deformed_shifts,
    describe_shifts,
)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_fixed_shifts_stay_and_flat_kernels_go_to_the_centre(kernel_size):
    taps = kernel_size**2
    shift = torch.eye(taps).view(1, taps, kernel_size, kernel_size).repeat(4, 1, 1, 1)
    described = describe_shifts(-2 * shift)
    side = kernel_size // 2
    assert described["centres"][0] == [-side, -side]
    assert described["centres"][1] == [-side, 1 - side]
    assert described["largest_displacement"] == pytest.approx(0, abs=1e-6)
    assert described["share_at_own_offset"] == pytest.approx(1)
    flat = describe_shifts(torch.ones_like(shift))
    assert torch.tensor(flat["centres"]).abs().max() < 1e-6
    assert flat["share_at_own_offset"] == pytest.approx(1 / taps)


def test_centre_is_that_of_squared_weights():
    kernel = torch.zeros(3, 3)
    kernel[0, 1], kernel[1, 2] = -3, 1
    assert centres_of_mass(kernel).tolist() == pytest.approx([-0.9, 0.1])
    assert centres_of_mass(torch.zeros(2, 3, 3)).tolist() == [[0, 0], [0, 0]]


def test_every_sliding_block_is_drawn(backbones):
    section = check_deformed_shifts(backbones["sliding"])
    assert list(section.numbers) == ["stage 1, block 1", "stage 1, block 2", "stage 2, block 1"]
    (picture,) = section.pictures
    assert [axes.get_title().split("\n")[0] for axes in picture.figure.axes] == [*section.numbers]
    assert all(axes.axison for axes in picture.figure.axes)
