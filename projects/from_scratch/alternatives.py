"""Other starts and borders than the published ones, to be named in a config."""

from typing import Any

import torch.nn.functional as F
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import Tensor, nn

from slide_mm.layers import SlideAttention
from slide_mm.models import SlidePVTv2


@WEIGHT_INITIALIZERS.register_module()
class ZeroDeformedKernels:
    """Let the learned kernels and the biases of the taps start at zero: plain shifts at first."""

    def __call__(self, module: nn.Module) -> None:
        """Change all Slide Attention of a module."""
        for layer in module.modules():
            if isinstance(layer, SlideAttention):
                nn.init.zeros_(layer.deformed_kernel)
                nn.init.zeros_(layer.shift_bias)


class _RepeatedBorders(SlideAttention):
    """Slide Attention that sees the map's border again outside it, where others see zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        reach = self.reach
        padded = F.pad(x.permute(0, 3, 1, 2), (reach,) * 4, mode="replicate").permute(0, 2, 3, 1)
        return super().forward(padded)[:, reach:-reach, reach:-reach]


@MODELS.register_module()
class SlidePVTv2RepeatedBorders(SlidePVTv2):
    """Slide-PVTv2 whose Slide Attention repeats the border outside the map."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.modules():
            if isinstance(layer, SlideAttention):
                layer.__class__ = _RepeatedBorders
