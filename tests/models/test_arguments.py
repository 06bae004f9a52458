"""Arguments drawn at random: a backbone does what they say, or names the wrong one in a line."""

import math
import random

import numpy as np
import pytest
import torch
from mmengine.model import PretrainedInit

from slide_mm.models import FAMILIES, SlidePVTv2
from tests.models.archs import STRIDES

NO_WHOLE_NUMBERS = [-2, 0.5, 3.0, "3", None, True, math.nan, (3,), 1 << 40, np.float64(3), "a\nb"]
NO_RATES = [-0.1, 1.1, math.nan, math.inf, "0.1", None, True, [0.1], 1j]
NO_STAGES = [1, "01", (0.0,), (0, 4), (-1,), (1, 1), None, {0: 1}, (True, 2), ("0",), (None,)]
WEIGHTS = dict(type="Pretrained", checkpoint="a.pth")
WRONG = {
    "in_channels": [0, *NO_WHOLE_NUMBERS],
    "kernel_size": [0, 2, 101, *NO_WHOLE_NUMBERS],
    "slide_stages": NO_STAGES,
    "out_indices": [(), *NO_STAGES],
    "frozen_stages": [5, *NO_WHOLE_NUMBERS],
    "drop_rate": NO_RATES,
    "attn_drop_rate": [1, *NO_RATES],
    "drop_path_rate": NO_RATES,
    "with_cp": ["yes", "False", 1, None, 0.0],
    "init_cfg": [
        *([WEIGHTS, "a.pth"], [WEIGHTS, 3], "a.pth", 3),
        *({"checkpoint": "a.pth"}, {"type": "Pretrained"}, {"type": PretrainedInit}),
    ],
    "pretrained": [True, False, 3, "", {"checkpoint": "a.pth"}],
    "window_size": [0, (7, 7), (7, 7, 0, 7), (7, 7, 7.0, 7), 1000, *NO_WHOLE_NUMBERS],
    "plus": ["yes", 1, 0.0],
    "stripe_widths": [1, (1, 2, 7, 7), (1, 2), (1, 2, 0), (1, 2.0, 7), None, "127"],
    "neighbourhood_size": [0, 2, 101, *NO_WHOLE_NUMBERS],
    "dilations": [
        *(1, (1, 1, 1, 1), ((1,),) * 3, ((1,), (1, 2), (), (1,)), ((1,), (0,), (1,), (1,))),
        *(((1,), (2.0,), (1,), (1,)), ((1,), (300,), (1,), (1,)), None, "1111"),
    ],
    "layer_scale": [-1, math.nan, math.inf, "1e-5", (1,), True],
    "mlp_ratio": [0, -1, 1e-9, math.nan, math.inf, 1e300, "4", None, (4,)],
    "pretrain_img_size": [31, (224, 224), 10**6, *NO_WHOLE_NUMBERS],
    "arch": ["huge", "", None, 3, [], {}, {"depths": (1, 1, 1, 1)}, {1: 2, "depths": 3}],
}
# Arguments of one family alone.
OWN = {
    "slide-swin": {"window_size": [1, 3, (2, 7, 1, 5), np.int64(4)], "mlp_ratio": [1, 2.5, 0.5]},
    "slide-pvt": {"pretrain_img_size": [32, 64, np.int64(100)]},
    "slide-cswin": {"stripe_widths": [(1, 2, 7), [3, 1, np.int64(2)]]},
    "slide-dat": {
        "plus": [None, True, np.bool_(False)],
        "window_size": [1, 3, np.int64(4)],
        "pretrain_img_size": [32, 64, np.int64(100)],
    },
    "slide-nat": {
        "neighbourhood_size": [1, 3, 7, np.int64(5)],
        "dilations": [((1,), (1, 2), (3,), (1,)), [[np.int64(2)], [1], [1, 1, 4], [1]]],
        "layer_scale": [None, 0, 1, np.float32(0.5)],
    },
}

# Families that divide their heads.
EVEN_HEADS = {"slide-cswin", "slide-dat"}


def draw_arch(rng, family):
    num_heads = [rng.randint(1, 3) * (1 + (family in EVEN_HEADS)) for _ in STRIDES]
    keys = next(iter(FAMILIES[family].backbone.arch_zoo.values()))
    arch = {key: rng.choices((1, 2, 1.5) if key == "mlp_ratios" else (1, 2), k=4) for key in keys}
    arch["num_heads"] = num_heads
    arch["embed_dims"] = [heads * 2 * rng.randint(1, 4) for heads in num_heads]
    return {key: rng.choice((list, tuple, np.array))(values) for key, values in arch.items()}


def draw(rng, family):
    rates = [0, 0.5, 0.99, np.float32(0.25)]
    constant = dict(type="Constant", layer="Linear", val=0.5)
    choices = {
        "in_channels": [1, 3, 4, np.int64(2)],
        "kernel_size": [1, 3, 5, np.int32(3)],
        "slide_stages": [(), [0, 1], (3, 1), {2}, range(4), np.array([0, 3])],
        "out_indices": [(0,), [3, 1], range(4), np.array([2])],
        "frozen_stages": [-1, 0, 2, 4, np.int64(1)],
        "drop_rate": [1, *rates],
        "attn_drop_rate": rates,
        "drop_path_rate": [1, *rates],
        "with_cp": [True, False, np.bool_(True)],
        "init_cfg": [None, {}, constant, [constant]],
        "pretrained": [None],
        **OWN.get(family, {}),
    }
    arguments = {key: rng.choice(values) for key, values in choices.items() if rng.random() < 0.7}
    return {**arguments, "arch": draw_arch(rng, family)}


@pytest.mark.parametrize("seed", range(40))
def test_right_arguments_give_the_promised_shapes(seed):
    rng = random.Random(seed)
    family = rng.choice(list(FAMILIES))
    arguments = draw(rng, family)
    backbone = FAMILIES[family].backbone(**arguments)
    backbone.init_weights()
    size = rng.randint(1, 70), rng.randint(1, 70)
    images = torch.randn(rng.randint(1, 2), int(arguments.get("in_channels", 3)), *size)
    stages = sorted(arguments.get("out_indices", range(4)))
    for training in (True, False):
        outputs = backbone.train(training)(images)
        assert [tuple(output.shape[1:]) for output in outputs] == [
            (arguments["arch"]["embed_dims"][i], *(math.ceil(side / STRIDES[i]) for side in size))
            for i in stages
        ]
        assert all(output.isfinite().all() for output in outputs)


def damage_arch(rng, arch):
    """Name and value of a number of the architecture that can't be."""
    key = rng.choice(list(arch))
    values = list(arch[key])
    wrong = [0, -1, math.nan, "8", None, True, 1 << 40] + [2.0] * (key != "mlp_ratios")
    values[rng.randrange(4)] = rng.choice(wrong)
    return key, rng.choice([values, "abcd", 3, None, values[:3]])


@pytest.mark.parametrize("name", [*WRONG, "arch's numbers", "arch's heads"])
def test_a_wrong_argument_is_named_in_one_line(name):
    rng = random.Random(0)
    families = [family for family, own in OWN.items() if name in own] or list(FAMILIES)
    for value in WRONG.get(name, [None] * 100):
        family = rng.choice(families)
        arguments, expected = draw(rng, family), name
        if name == "arch's numbers":
            expected, value = damage_arch(rng, arguments["arch"])
            arguments["arch"][expected] = value
        elif name == "arch's heads":
            expected = "num_heads"
            arguments["arch"]["embed_dims"], arguments["arch"]["num_heads"] = [8] * 4, [1, 2, 4, 3]
            arguments["out_indices"] = (0,)  # The stage whose heads don't fit isn't built.
        else:
            arguments[name] = value
        with pytest.raises(ValueError, match=expected) as caught:
            FAMILIES[family].backbone(**arguments)
        assert "\n" not in str(caught.value)


def test_weights_that_are_named_twice():
    with pytest.raises(ValueError, match=r"pretrained is 'b\.pth': give it or init_cfg, not both"):
        SlidePVTv2(init_cfg=WEIGHTS, pretrained="b.pth")


def test_initialisation_is_mmengines(tmp_path):
    """Of several configs, and with weights as MMSegmentation's configs name them."""
    torch.save(SlidePVTv2("b0").state_dict(), tmp_path / "b0.pth")
    weights = dict(type="Pretrained", checkpoint=str(tmp_path / "b0.pth"))
    constant = dict(type="Constant", layer="LayerNorm", val=7.0)
    expected = torch.load(tmp_path / "b0.pth")["stages.0.norm.weight"]
    for options in (
        {"pretrained": weights["checkpoint"]},
        {"init_cfg": [weights]},
        {"init_cfg": [weights, constant]},  # What is pretrained comes last.
    ):
        backbone = SlidePVTv2("b0", **options)
        torch.nn.init.zeros_(backbone.stages[0].norm.weight)
        backbone.init_weights()
        assert torch.equal(backbone.stages[0].norm.weight, expected)
    backbone = SlidePVTv2("b0", init_cfg=[constant])
    backbone.init_weights()
    assert (backbone.stages[0].norm.weight == 7).all()
