import shutil
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

CONFIG = Path(__file__).parents[2] / "projects/plug_into_mmdet/dino_slide-pvtv2-b0_scenes.py"


def test_detector_learns_from_a_step_in_a_foreign_project(tmp_path):
    from mmdet.testing import demo_mm_inputs

    cfg = Config.fromfile(shutil.copy(CONFIG, tmp_path))
    assert cfg.custom_imports.imports == ["slide_mm"]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch = demo_mm_inputs(2, [[3, 64, 96]] * 2, num_classes=10)
        model = MODELS.build(cfg.model).train()
        model.init_weights()
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
        losses = model.train_step(batch, optim_wrapper)
    assert torch.isfinite(losses["loss"])
    assert not [name for name, p in model.backbone.named_parameters() if p.equal(before[name])]
