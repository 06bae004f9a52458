import json

import pytest
import torch

from slide_mm.analysis.local_attention.attention import (
    attention_weights,
    check_attention,
    count_wins,
    mixer_weights,
    relative_entropy,
)
from slide_mm.layers import SlideAttention
from slide_mm.ops.reference import FORMS


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_weights_are_those_that_the_layer_uses(kernel_size):
    mixer = SlideAttention(16, num_heads=2, kernel_size=kernel_size)
    x = 3 * torch.randn(2, 6, 7, 16)
    value = mixer.qkv(x).unflatten(-1, (3, 2, 8)).select(3, 2)
    weights = mixer_weights(mixer, x)
    output = FORMS["conv"].aggregate(weights, value, mixer.kernel, mixer.shift_bias)
    torch.testing.assert_close(mixer.proj(output.flatten(-2)), mixer(x), atol=1e-5, rtol=1e-4)


def test_entropy_and_wins_of_known_weights():
    tap = torch.tensor([[4, 0], [4, 8], [4, 8], [1, 8]])
    certain = torch.nn.functional.one_hot(tap, 9).float()
    assert relative_entropy(certain).abs().max() == 0
    assert relative_entropy(torch.full((5, 9), 1 / 9)) == pytest.approx(1)
    wins = count_wins(0.9 * certain + 0.1 / 9)
    assert wins[0, 4] == 0.75 == wins[1, 8]
    assert wins.sum(-1).tolist() == [1, 1]


def test_every_sliding_block_at_every_point(backbones, photograph):
    model = backbones["sliding"]
    section = check_attention(model, [photograph])
    blocks = section.numbers["noise"]["blocks"]
    assert list(blocks) == ["stage 1, block 1", "stage 1, block 2", "stage 2, block 1"]
    weights = {x.name: x.weights for x in attention_weights(model, photograph.tensor)}
    # Points are (x, y); the second is the last pixel.
    at_points = blocks["stage 2, block 1"]["weights_at_points"]
    assert at_points[0] == weights["stage 2, block 1"][90 // 8, 100 // 8].tolist()
    assert at_points[1] == weights["stage 2, block 1"][-1, -1].tolist()
    assert json.loads(json.dumps(section.numbers, allow_nan=False)) == section.numbers
    names = [picture.name for picture in section.pictures]
    assert names == [f"attention_1_{x}" for x in ("entropy", "wins", "point_1", "point_2")]
    for picture in section.pictures:
        assert picture.to_png().startswith(b"\x89PNG")
