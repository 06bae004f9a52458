import math

import pytest
import torch

from slide_mm.layers import DepthwiseConvMlp
from slide_mm.models import FAMILIES
from tests.models.archs import build


@pytest.mark.parametrize(
    ("family", "options"),
    [("slide-pvtv2", {}), ("slide-dat", {"arch": "plus_tiny"})],
)
def test_mlps_start_as_convolutions(family, options):
    before, after = (
        build(FAMILIES[family], **options, init_cfg=init_cfg)
        for init_cfg in (None, {"type": "ConvolutionalMlps"})
    )
    before.init_weights()
    after.init_weights()
    mlps = [layer for layer in after.modules() if isinstance(layer, DepthwiseConvMlp)]
    linears = {linear.weight for layer in mlps for linear in (layer.fc1, layer.fc2)}
    assert linears
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new) != (new in linears)
    for weight in linears:
        scaled = weight * math.sqrt(len(weight) / 2)
        assert scaled.std().item() == pytest.approx(1, abs=0.15)
