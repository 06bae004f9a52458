"""Arguments drawn at random: a layer is built, or the wrong one is named in a line."""

import math
import random
from functools import partial

import numpy as np
import pytest
import torch

from slide_mm import layers
from slide_mm.layers.arguments import (
    flag,
    odd_number,
    positive_number,
    rate,
    sequence,
    whole_number,
)

NUMBERS = {
    "embed_dims": [8, 12, np.int64(16)],
    "hidden_dims": [1, 5, np.int32(7)],
    "in_channels": [1, 3, np.int64(4)],
    "num_heads": [1, 2, np.int64(4)],
    "kernel_size": [1, 3, np.int32(5)],
    "window_size": [1, 4, np.int64(7)],
    "num_groups": [1, np.int64(1)],
    "map_size": [1, 7, np.int64(14)],
    "sr_ratio": [1, 2, np.int64(3)],
    "size": [1, 5, np.int64(7)],
    "stride": [1, np.int64(1)],
}
RATES = {"drop": [0, 0.5, 1], "proj_drop": [0, np.float32(0.5), 1], "attn_drop": [0.0, 0.99]}
RIGHT = {**NUMBERS, **RATES}
LAYERS = {
    layers.SlideAttention: ("embed_dims", "num_heads", "kernel_size", "attn_drop", "proj_drop"),
    layers.ShiftedWindowAttention: (
        *("embed_dims", "num_heads", "window_size", "attn_drop", "proj_drop"),
    ),
    layers.SpatialReductionAttention: (
        *("embed_dims", "num_heads", "sr_ratio", "attn_drop", "proj_drop"),
    ),
    partial(layers.CrossShapedAttention, num_heads=2): ("embed_dims", "attn_drop", "proj_drop"),
    layers.DeformableAttention: (
        *("embed_dims", "num_heads", "num_groups", "stride", "kernel_size", "map_size"),
        *("attn_drop", "proj_drop"),
    ),
    layers.Mlp: ("embed_dims", "hidden_dims", "drop"),
    layers.DepthwiseConvMlp: ("embed_dims", "hidden_dims", "drop"),
    layers.AbsolutePositionEmbedding: ("embed_dims", "size"),
    layers.PatchMerging: ("in_channels", "embed_dims"),
    layers.PatchEmbed: ("in_channels", "embed_dims", "kernel_size", "stride"),
}
NO_NUMBERS = [0, -1, 2.0, "3", None, True, math.nan, (3,), 1 << 40, "a\nb", np.eye(2)]
NO_RATES = [-0.1, 1.1, math.nan, math.inf, "0.1", None, True, [0.1], 1j]


@pytest.mark.parametrize("seed", range(40))
def test_layers_are_built_or_name_the_wrong_argument(seed):
    rng = random.Random(seed)
    kind = rng.choice(list(LAYERS))
    arguments = {name: rng.choice(RIGHT[name]) for name in LAYERS[kind]}
    channels = int(arguments.get("in_channels", arguments["embed_dims"]))
    for training in (True, False):
        tokens = kind(**arguments).train(training)(torch.randn(2, 5, 3, channels))
        assert tokens.shape[-1] == arguments["embed_dims"]
    wrong = rng.choice(LAYERS[kind])
    for value in NO_RATES if wrong in RATES else NO_NUMBERS:
        with pytest.raises(ValueError, match=wrong) as caught:
            kind(**{**arguments, wrong: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dims": 10, "num_heads": 3}, "embed_dims 10 is not divisible by num_heads 3"),
        ({"kernel_size": 4}, "kernel_size is 4: give a positive odd number"),
        ({"attn_drop": 1}, "attn_drop is 1: give a number from 0 to less than 1"),
        ({"backend": "fast"}, "backend is 'fast': choose one of auto,"),
    ],
)
def test_other_ranges(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.SlideAttention(**{"embed_dims": 8, "num_heads": 1, **arguments})
    with pytest.raises(ValueError, match="drop_path is nan"):
        layers.Block(8, torch.nn.Identity(), torch.nn.Identity(), drop_path=math.nan)
    with pytest.raises(ValueError, match="kernel_size is 4: give a positive odd number"):
        layers.PatchEmbed(3, 8, kernel_size=4, stride=2)


@pytest.mark.parametrize(
    ("take", "right", "wrong"),
    [
        (whole_number, (1, 1 << 16, np.int8(3)), (0, (1 << 16) + 1, True, 1.0)),
        (odd_number, (1, 31), (-1, 2, 33)),
        (rate, (0, 1, np.float32(0.5)), (-1e-9, 1 + 1e-9, False)),
        (positive_number, (1e-9, 1 << 16), (0, (1 << 16) + 1, math.nan, True, "1")),
        (flag, (True, np.bool_(False)), ("yes", 1, None)),
    ],
)
def test_both_ends_of_a_range(take, right, wrong):
    assert [take("x", value) for value in right] == list(right)
    for value in wrong:
        with pytest.raises(ValueError, match=r"^x is .*: give "):
            take("x", value)


def test_texts_are_no_sequences():
    assert sequence("x", range(3), "give some") == (0, 1, 2)
    for value in ("012", b"012", 0, None, {0: 1}):
        with pytest.raises(ValueError, match=r"x is .*: give some"):
            sequence("x", value, "give some")
