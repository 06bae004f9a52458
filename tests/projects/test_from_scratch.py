import json

import pytest
import torch
from mmengine.registry import MODELS

from projects.from_scratch import study
from slide_mm.datasets import make_demo_scenes
from slide_mm.layers import SlideAttention
from slide_mm.models import FAMILIES
from tests.models.archs import narrow

ARCH = narrow(FAMILIES["slide-pvtv2"])


def build(kind="SlidePVTv2", **options):
    torch.manual_seed(0)
    model = MODELS.build({"type": kind, "arch": ARCH, "drop_path_rate": 0.0, **options})
    model.init_weights()
    return model


def layers(model, kind):
    return [x for x in model.modules() if isinstance(x, kind)]


def changed(before, after):
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return {name.rpartition(".")[2] for (name, old), new in pairs if not torch.equal(old, new)}


def test_kernels_start_at_zero():
    model = build(init_cfg={"type": "ZeroDeformedKernels"})
    assert changed(build(), model) == {"deformed_kernel", "shift_bias"}
    for layer in layers(model, SlideAttention):
        assert not layer.deformed_kernel.any()
        assert not layer.shift_bias.any()


def test_repeated_borders():
    plain, repeated = build(), build("SlidePVTv2RepeatedBorders")
    x = torch.randn(2, 7, 6, layers(plain, SlideAttention)[0].qkv.in_features)
    first, second = (layers(model, SlideAttention)[0](x) for model in (plain, repeated))
    # A tap of a neighbour is itself a mixture of neighbours: two tokens see what is outside.
    torch.testing.assert_close(first[:, 2:-2, 2:-2], second[:, 2:-2, 2:-2])
    assert not torch.allclose(first[:, 0], second[:, 0])
    same = x[:, :1, :1].expand(-1, 7, 6, -1)
    inside = layers(plain, SlideAttention)[0](same)[:, 3, 3]
    corner = layers(repeated, SlideAttention)[0](same)[:, 1, 1]
    torch.testing.assert_close(corner, inside)


def test_summary_is_of_what_came_to_its_end(tmp_path):
    values = {0: [0.1, 0.3], 1: [0.2], 2: None}
    for seed, aps in values.items():
        log = study.run_dir("Swin-T", seed, tmp_path) / "1" / "vis_data" / "scalars.json"
        log.parent.mkdir(parents=True)
        records = [{"loss": 1.0, "step": 1}]
        records += [{"coco/bbox_mAP": ap, "coco/segm_mAP": ap / 2, "step": 9} for ap in aps or []]
        log.write_text("\n".join(map(json.dumps, records)))
    table = study.summarise(["Swin-T"], list(values), tmp_path)
    assert "| Swin-T | 0.250 (0.200 to 0.300) | 0.125 (0.100 to 0.150) | 2     |" in table


def test_variants_have_folders_of_their_own(tmp_path):
    assert len({study.run_dir(name, 0, tmp_path) for name in study.VARIANTS}) == len(study.VARIANTS)


@pytest.mark.slow
def test_a_variant_trains_to_its_end(tmp_path, monkeypatch):
    make_demo_scenes(tmp_path / "data", num_training=6, num_validation=2, image_size=64)
    monkeypatch.setitem(study.BASES, "pvtv2-b0", (study.BASES["pvtv2-b0"][0], 1))
    study.write_config("pvtv2-b0", tmp_path / "data", tmp_path)
    name = "borders are repeated"
    assert study.train(name, 0, tmp_path) == 0
    assert study.read_metrics(study.run_dir(name, 0, tmp_path)).keys() == study.METRICS.keys()
