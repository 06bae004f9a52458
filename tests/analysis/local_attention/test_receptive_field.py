import math

import pytest
import torch

from slide_mm.analysis.local_attention.receptive_field import (
    check_receptive_field,
    crop_around,
    describe_field,
    measure_fields,
)
from slide_mm.models import SlideSwin


def test_radii_of_a_gaussian():
    places = torch.arange(201) - torch.tensor([[90.0], [104.0]])
    rows, columns = places
    width = 9.0
    field = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * width**2))
    described = describe_field(field * (field > 1e-12))
    assert described["centre"] == pytest.approx([90, 104])
    assert described["radius_50"] == pytest.approx(width * math.sqrt(2 * math.log(2)), abs=0.2)
    assert described["radius_95"] == pytest.approx(width * math.sqrt(2 * math.log(20)), abs=0.2)
    assert described["reach"] == pytest.approx(width * math.sqrt(2 * math.log(1e12)), abs=1)
    assert describe_field(torch.ones(8, 8))["reach"] is None


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_reach_of_sliding_stages_is_that_of_their_neighbourhoods(kernel_size, backbones):
    arch = backbones["sliding"].arch
    model = SlideSwin(arch=arch, kernel_size=kernel_size, out_indices=(1,)).eval()
    fields = measure_fields(model, [torch.randn(1, 3, 160, 160)])
    reaches = [describe_field(field)["reach"] for field in fields]
    radius = kernel_size // 2
    # Stage 1 has two blocks and patches of 4 x 4; stage 2 has one, and merges 2 x 2 of them.
    assert reaches == [2 + 4 * 2 * radius, 4 + 8 * radius + 4 * 2 * radius]


def test_windows_see_further_than_neighbourhoods(backbones, photograph):
    section = check_receptive_field(backbones, [photograph])
    sliding, original = section.numbers.values()
    assert sliding[0]["reach"] < original[0]["reach"]
    for stage in (*sliding, *original):
        assert 0 < stage["radius_50"] <= stage["radius_95"]
    assert section.pictures[0].to_png().startswith(b"\x89PNG")


def test_crops_stay_inside_the_image():
    image = torch.arange(20 * 30).view(1, 1, 20, 30)
    assert crop_around(image, (15, 10), 8)[0, 0, 4, 4] == 10 * 30 + 15
    for point in ((0, 0), (29, 19), (29, 0)):
        assert crop_around(image, point, 8).shape == (1, 1, 8, 8)
