import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from timm.optim import param_groups_layer_decay
from torch import nn

from tests.models.archs import FAMILY, build, narrow

RATE = 0.5


def rates_of(model, lr=1.0, **paramwise):
    """Learning rate and decay of each parameter."""
    config = {
        "constructor": "LayerDecayConstructor",
        "optimizer": {"type": "AdamW", "lr": lr, "weight_decay": 0.1},
        "paramwise_cfg": {"layer_decay_rate": RATE, **paramwise},
    }
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(x["params"][0])]: (x["lr"], x["weight_decay"]) for x in groups}


@FAMILY
def test_rates_are_those_of_timm(family):
    name = f"{family.timm_name}_{next(iter(family.backbone.arch_zoo))}"
    with torch.device("meta"):
        model = timm.create_model(name, arch=narrow(family))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=RATE)
        for parameter in group["params"]
    }
    rates = {name: lr for name, (lr, _) in rates_of(model).items()}
    assert rates == expected
    assert len(set(rates.values())) == sum(narrow(family)["depths"]) + 2
    assert rates["head.fc.weight"] == 1


@FAMILY
def test_a_detectors_backbone_decays_and_its_head_does_not(family):
    with torch.device("meta"):
        model = nn.Module()
        model.backbone, model.head = build(family, out_indices=(0, 1)), nn.Linear(1, 1)
    rates = rates_of(model, norm_decay_mult=0.0, custom_keys={"table": {"decay_mult": 0.0}})
    blocks = sum(narrow(family)["depths"][:2])
    assert rates["head.weight"] == (1, 0.1)
    assert rates["backbone.stages.1.blocks.0.norm1.weight"] == (RATE, 0)
    assert rates["backbone.stages.0.blocks.0.mlp.fc1.weight"] == (RATE**blocks, 0.1)
    first = f"backbone.{family.backbone.first_conv}.weight"
    assert rates[first] == (RATE ** (blocks + 1), 0.1)
    assert all(rates[name][1] == 0 for name in rates if name.endswith("table"))


@pytest.mark.parametrize("rate", [None, 0, 1.5, "0.9", True])
def test_wrong_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"layer_decay_rate is .*: give a factor from 0 to 1"):
        rates_of(nn.ModuleDict({"backbone": nn.Linear(1, 1)}), layer_decay_rate=rate)


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match=r"model\.backbone is 'Linear': give one of slide_mm's"):
        rates_of(nn.ModuleDict({"backbone": nn.Linear(1, 1)}))
