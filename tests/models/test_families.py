"""What goes with a family follows from its registration."""

import pickle

import pytest
import timm
import torch
from mmengine.registry import MODELS

from slide_mm import models
from slide_mm.checkpoints import SOURCES, convert_state_dict
from slide_mm.models import FAMILIES, build_backbone, classifiers, list_archs
from tests.models.archs import FAMILY, narrow


@FAMILY
def test_every_registry_knows_it(family):
    name = family.backbone.__name__
    assert getattr(models, name) is MODELS.get(name) is family.backbone
    assert getattr(classifiers, f"{name}Classifier") is family.classifier
    assert any(source.family == name for source in SOURCES.values())
    assert isinstance(MODELS.build({"type": name, "arch": narrow(family)}), family.backbone)
    entry_points = {f"{family.timm_name}_{arch}" for arch in family.backbone.arch_zoo}
    assert entry_points == set(timm.list_models(f"{family.timm_name}_*")) & entry_points
    assert {f"{family.name}/{arch}" for arch in family.backbone.arch_zoo} <= set(list_archs())


def test_timm_lists_no_others():
    names = [f"{x.timm_name}_{arch}" for x in FAMILIES.values() for arch in x.backbone.arch_zoo]
    assert sorted(timm.list_models("slide_*")) == sorted(names)


@FAMILY
def test_own_weights_need_no_rules(family):
    """Those of all parts, and of classifiers, go where they came from."""
    model = family.classifier(narrow(family), num_classes=3)
    weights = convert_state_dict(model.state_dict(), model, "own", source="slide-mm").weights
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], x) for name, x in model.state_dict().items())


@FAMILY
def test_what_is_classified_is_normed_once(family):
    model = family.classifier(narrow(family))
    norms = [type(norm).__name__ for norm in (model.stages[-1].norm, model.out_norms["3"])]
    assert sorted(norms) == ["Identity", "LayerNorm"]


@FAMILY
def test_classifiers_are_pickled(family):
    model = family.classifier(narrow(family), num_classes=3)
    assert type(pickle.loads(pickle.dumps(model))) is family.classifier


def test_an_unknown_arch_is_told_with_those_known():
    with pytest.raises(
        ValueError, match=r"^arch is slide-pvt/huge: choose one of .*slide-pvt/tiny"
    ):
        build_backbone("slide-pvt/huge")
