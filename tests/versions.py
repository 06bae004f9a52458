"""Marks of tests that need more than the oldest PyTorch that is supported."""

import pytest
import torch
from torch.torch_version import TorchVersion


def needs_pytorch(version: str, what: str) -> pytest.MarkDecorator:
    """Skip a test on older versions; `what` is what they lack."""
    return pytest.mark.skipif(
        torch.__version__ < TorchVersion(version), reason=f"{what} needs PyTorch {version}"
    )
