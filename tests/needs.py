"""What tests need beyond the oldest PyTorch with MMEngine alone; without it they are skipped."""

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion


def needs_pytorch(version: str, what: str) -> pytest.MarkDecorator:
    """Mark a test for a version and later ones; `what` is what older ones lack."""
    return pytest.mark.skipif(
        torch.__version__ < TorchVersion(version), reason=f"{what} needs PyTorch {version}"
    )


def mmdet_backbone(name: str) -> type[nn.Module]:
    """A class of MMDetection's backbones."""
    return getattr(pytest.importorskip("mmdet.models.backbones"), name)
