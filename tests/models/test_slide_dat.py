"""DAT++; the tests of all families take their first arch, which is DAT's."""

import pytest
import torch

from slide_mm.layers import DeformableAttention, NeighbourhoodAttention, ShiftedWindowAttention
from slide_mm.models import FAMILIES, SlideDAT
from tests.models.archs import build
from tests.models.test_backbones import assert_takes_every_size_and_deploys, saved_bytes

ARCH = {
    "embed_dims": (16, 32, 64, 128),
    "depths": (2, 1, 2, 1),
    "num_heads": (2, 4, 8, 16),
    "num_groups": (1, 2, 4, 8),
}


def build_plus(**options):
    return build(FAMILIES["slide-dat"], arch=ARCH, plus=True, drop_path_rate=0.0, **options)


def test_takes_every_size_and_deploys():
    assert_takes_every_size_and_deploys(build_plus())


def test_mixers_of_every_block():
    windows, points, near = ShiftedWindowAttention, DeformableAttention, NeighbourhoodAttention
    with torch.device("meta"):
        models = [SlideDAT(arch, slide_stages=()) for arch in ("tiny", "plus_tiny")]
    kinds = [[[type(b.mixer) for b in x.blocks] for x in model.stages] for model in models]
    assert kinds[0] == [[windows] * 2] * 2 + [[windows, points] * 3, [windows, points]]
    assert kinds[1] == [[near, points], [near, points] * 2, [near, points] * 9, [points] * 2]
    shifts = [[b.mixer.shift_size for b in stage.blocks] for stage in models[0].stages[:2]]
    assert shifts == [[0, 4]] * 2


@pytest.mark.parametrize("slide_stages", [(), (0, 1)])
def test_gradients_reach_every_parameter_and_are_recomputed(slide_stages):
    images = torch.randn(1, 3, 96, 64)
    memory, gradients = {}, {}
    for with_cp in (False, True):
        backbone = build_plus(slide_stages=slide_stages, with_cp=with_cp)
        memory[with_cp], outputs = saved_bytes(lambda model=backbone: model(images))
        sum(output.square().sum() for output in outputs).backward()
        gradients[with_cp] = {name: p.grad for name, p in backbone.named_parameters()}
    assert not [name for name, gradient in gradients[False].items() if not gradient.any()]
    assert memory[True] < 0.5 * memory[False]
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-4, atol=1e-4)


def test_name_of_the_arch_says_which_parts():
    with torch.device("meta"):
        assert [SlideDAT(arch).plus for arch in ("small", "plus_small")] == [False, True]
        assert not SlideDAT(ARCH).plus
