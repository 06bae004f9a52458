"""What MMEngine's Runner needs to train a classifier of timm: model, data, metric."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torchvision.datasets import ImageFolder


@MODELS.register_module()
class TimmClassifier(BaseModel):
    """A classifier of timm.

    Its weights are named ``backbone.*``, so that detectors and segmentors take them by
    ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.')``.

    Args:
        model_name: Entry point of timm, such as ``'slide_swin_tiny'``.
        num_classes: Number of classes.
        mixup: Arguments of :class:`timm.data.Mixup`, which mixes images and labels and smoothes
            the labels. Batches must be even.
        **options: Further arguments of :func:`timm.create_model`.

    Raises:
        ValueError: If timm has no such model.
    """

    def __init__(
        self, model_name: str, num_classes: int, mixup: Mapping[str, Any], **options: Any
    ) -> None:
        super().__init__()
        if not timm.is_model(model_name):
            ours = ", ".join(timm.list_models("slide_*"))
            raise ValueError(f"timm has no model {model_name!r}: give one of its models, or {ours}")
        self.backbone = timm.create_model(model_name, num_classes=num_classes, **options)
        self.mixup = Mixup(num_classes=num_classes, **mixup)
        self.loss = SoftTargetCrossEntropy()

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor]:
        """Compute the last features of images (B, 3, H, W)."""
        return (self.backbone.forward_features(inputs),)

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor]:
        """Classify images.

        Args:
            inputs: Normalised images (B, 3, H, W).
            labels: Classes (B,), for the loss.
            mode: ``'loss'`` for the training loss, otherwise logits.

        Returns:
            ``{'loss': ...}``, or logits (B, num_classes).
        """
        if mode == "loss":
            inputs, targets = self.mixup(inputs, labels)
        (features,) = self.extract_feat(inputs)
        logits = self.backbone.forward_head(features)
        return {"loss": self.loss(logits, targets)} if mode == "loss" else logits


@DATASETS.register_module()
class TimmImageFolder(ImageFolder):
    """Images in one folder a class, changed by timm.

    Args:
        data_root: Holds the folders, whose names in order give the classes.
        **transform: Arguments of :func:`timm.data.create_transform`.
    """

    def __init__(self, data_root: str, **transform: Any) -> None:
        super().__init__(data_root, transform=create_transform(**transform))

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = super().__getitem__(index)
        return {"inputs": image, "labels": label}


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Percentage of images whose class is the first guess, and one of the first five."""

    def process(self, data_batch: Mapping[str, Tensor], data_samples: Sequence[Tensor]) -> None:
        logits = torch.stack(list(data_samples)).cpu()
        guesses = logits.topk(min(5, logits.shape[1])).indices
        self.results += (guesses == data_batch["labels"].cpu()[:, None]).tolist()

    def compute_metrics(self, results: list[list[bool]]) -> dict[str, float]:
        hits = torch.tensor(results).float()
        return {
            "top1": 100 * hits[:, 0].mean().item(),
            "top5": 100 * hits.sum(dim=1).mean().item(),
        }
