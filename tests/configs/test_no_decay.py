from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from slide_mm.models import FAMILIES
from tests.models.archs import FAMILY, build

BASE = Path(__file__).parents[2] / "configs/_base_"
RECIPES = sorted((BASE / "recipes").glob("*.py"))
OPTIMIZER = dict(type="AdamW", lr=1.0, weight_decay=1.0)


def build_both(family):
    """With all that slides and without, as both have parameters of their own."""
    return [build(family), build(family, slide_stages=())]


def find_decaying(backbone, optim_wrapper):
    """Names and learning rates of parameters, apart by whether they decay."""
    model = nn.ModuleDict({"backbone": backbone})
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    groups = build_optim_wrapper(model, optim_wrapper).optimizer.param_groups
    rates = {names[id(group["params"][0])]: group["lr"] for group in groups}
    decaying = {names[id(group["params"][0])] for group in groups if group["weight_decay"]}
    assert len(rates) == len(names)
    return rates, decaying


def list_what_should_decay(backbone):
    """All but norms, tables of positions and biases of taps."""
    for prefix, module in backbone.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            is_table = name.endswith(("relative_position_bias_table", "position.table"))
            if not isinstance(module, nn.LayerNorm) and not is_table | name.endswith("shift_bias"):
                yield name


@FAMILY
@pytest.mark.parametrize("slower", [{}, {"lr_mult": 0.1}], ids=["equally", "slower"])
def test_norms_tables_and_biases_of_taps_dont_decay(family, slower):
    no_decay = Config.fromfile(BASE / "no_decay.py").no_decay
    keys = {key: {**rule, **slower} for key, rule in no_decay.items()}
    wrapper = dict(
        optimizer=OPTIMIZER, paramwise_cfg=dict(custom_keys={"backbone": slower, **keys})
    )
    for backbone in build_both(family):
        rates, decaying = find_decaying(backbone, wrapper)
        assert decaying == set(list_what_should_decay(backbone))
        assert set(rates.values()) == {slower.get("lr_mult", 1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_let_the_same_decay(recipe):
    """PVT's let everything decay, as its authors do, by a five-hundredth of what Swin's take."""
    wrapper = Config.fromfile(recipe).optim_wrapper
    if "paramwise_cfg" not in wrapper:
        assert wrapper.optimizer.weight_decay == 1e-4
        return
    for family in FAMILIES.values():
        for backbone in build_both(family):
            rates, decaying = find_decaying(backbone, wrapper.copy())
            biases = wrapper.paramwise_cfg.get("bias_decay_mult") == 0
            expected = set(list_what_should_decay(backbone))
            if biases:
                expected = {name for name in expected if not name.endswith(".bias")}
            assert decaying == expected
            assert len(set(rates.values())) == 1
