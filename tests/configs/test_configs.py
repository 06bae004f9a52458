from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData

CONFIGS = Path(__file__).parents[2] / "configs"
LEAVES = sorted(path for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts)


def detection_batch():
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(2, [[3, 64, 96]] * 2, num_classes=10, with_mask=True)


def segmentation_batch():
    from mmseg.structures import SegDataSample

    torch.manual_seed(0)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo={"img_shape": (64, 96)})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 10, (1, 64, 96)))
        samples.append(sample)
    return {"inputs": [torch.randint(0, 255, (3, 64, 96))] * 2, "data_samples": samples}


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.stem)
def test_config_builds_and_its_loss_has_gradients(path):
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        if config.default_scope == "mmdet":
            batch = detection_batch()
        else:
            batch = segmentation_batch()
            config.model.data_preprocessor.size = (64, 96)
        model = revert_sync_batchnorm(MODELS.build(config.model)).train()
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        loss, _ = model.parse_losses(losses)
        loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)
