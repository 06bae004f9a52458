"""Made-up batches, and one training step on them."""

import torch
from mmengine.structures import PixelData

from slide_mm.engine.config import iter_nodes


def detection_batch(height, width, **options):
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(2, [[3, height, width]] * 2, num_classes=10, **options)


def segmentation_batch(height, width):
    from mmseg.structures import SegDataSample

    torch.manual_seed(0)
    size, samples = (height, width), []
    for _ in range(2):
        sample = SegDataSample(metainfo={"img_shape": size, "ori_shape": size})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 10, (1, *size)))
        samples.append(sample)
    return {"inputs": [torch.randint(0, 255, (3, *size))] * 2, "data_samples": samples}


def make_batch(cfg, height=64, width=96):
    """A batch for a config's model, whose heads are told to be content with little."""
    model = cfg.model
    if cfg.default_scope == "mmseg":
        model.data_preprocessor.size = (height, width)
        return segmentation_batch(height, width)
    model.data_preprocessor.batch_augments = None
    for regions in (model.get("train_cfg", {}).get("rpn_proposal"), model.test_cfg.get("rpn")):
        if regions:
            regions.max_per_img = 32  # Heads cost more than images.
    if model.get("as_two_stage"):
        model.num_queries = 50  # They begin at tokens, of which there are few.
    return detection_batch(
        height,
        width,
        with_mask=any(node.get("with_mask") for _, node in iter_nodes(cfg.train_dataloader)),
        with_semantic=model.data_preprocessor.get("pad_seg", False),
    )


def train_one_step(model, batch, optim_wrapper):
    """Returns the losses, and names of the backbone's parameters that stay as they were."""
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    losses = model.train_step(batch, optim_wrapper)
    after = model.backbone.named_parameters()
    return losses, [name for name, p in after if p.equal(before[name])]
