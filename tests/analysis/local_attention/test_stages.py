import pytest
import torch
from mmdet.models.backbones import PyramidVisionTransformer, ResNet, SwinTransformer

from slide_mm.analysis.local_attention import measuring
from slide_mm.analysis.local_attention.stages import mixer_names, stage_features, stages_of
from slide_mm.models import SlidePVT, SlideSwin


def test_features_are_those_of_the_stages(backbones, photograph):
    model = backbones["sliding"]
    features = stage_features(model, photograph.tensor)
    outputs = model(photograph.tensor)
    for index, (x, output) in enumerate(zip(features, outputs, strict=True)):
        assert model.out_norms[str(index)](x).permute(0, 3, 1, 2).equal(output)
    assert mixer_names(model, 4) == ["SlideAttention"] * 2 + ["ShiftedWindowAttention"] * 2


@pytest.mark.parametrize(
    ("ours", "theirs", "mixer"),
    [
        (
            SlidePVT,
            lambda: PyramidVisionTransformer(num_layers=[2] * 4),
            "SpatialReductionAttention",
        ),
        (SlideSwin, SwinTransformer, "ShiftWindowMSA"),
    ],
)
def test_stages_of_mmdetection_begin_and_end_where_ours_do(ours, theirs, mixer):
    models = [ours(arch="tiny", slide_stages=()), theirs()]
    for model in models:
        model.eval()  # MMDetection's returns nothing.
    ours, theirs = (measuring.count_parts(model, 224) for model in models)
    assert list(ours) == list(theirs)
    for part, flops in ours.items():
        assert flops == pytest.approx(theirs[part], rel=0.01)
    assert mixer_names(models[1], 4) == [mixer] * 4


def test_other_backbones_have_outputs_but_no_stages():
    model = ResNet(18)
    model.eval()
    assert stages_of(model) == []
    assert list(measuring.count_parts(model, 64)) == ["backbone"]
    image = torch.randn(1, 3, 64, 96)
    assert [x.shape[1:3] for x in stage_features(model, image)] == [
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
    ]
    assert mixer_names(model, 4) == ["ResNet"] * 4
