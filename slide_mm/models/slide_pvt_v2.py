"""Slide-PVTv2."""

from typing import Any, ClassVar

from torch import nn

from slide_mm.checkpoints.sources import pvt_v2
from slide_mm.layers import DepthwiseConvMlp, PatchEmbed, SpatialReductionAttention
from slide_mm.models.backbone import HierarchicalBackbone
from slide_mm.models.families import register_family
from slide_mm.models.slide_pvt import PVT_WIDTHS


@register_family("slide-pvtv2", pvt_v2.LAYOUTS, timm_name="slide_pvt_v2")
class SlidePVTv2(HierarchicalBackbone):
    """Pyramid Vision Transformer v2 whose early stages slide.

    Slide-Transformer, CVPR 2023, arXiv 2304.04237; PVTv2, arXiv 2106.13797.

    Args:
        arch: ``'b0'`` to ``'b5'``, or a dict of ``embed_dims``, ``depths``, ``num_heads``,
            ``mlp_ratios`` and ``sr_ratios``.
        **kwargs: See :class:`~slide_mm.models.backbone.HierarchicalBackbone`.
    """

    arch_zoo: ClassVar = {
        "b0": {**PVT_WIDTHS, "embed_dims": (32, 64, 160, 256), "depths": (2, 2, 2, 2)},
        "b1": {**PVT_WIDTHS, "depths": (2, 2, 2, 2)},
        "b2": {**PVT_WIDTHS, "depths": (3, 4, 6, 3)},
        "b3": {**PVT_WIDTHS, "depths": (3, 4, 18, 3)},
        "b4": {**PVT_WIDTHS, "depths": (3, 8, 27, 3)},
        "b5": {**PVT_WIDTHS, "depths": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)},
    }
    norm_eps = 1e-6
    mlp_type = DepthwiseConvMlp

    def __init__(self, arch="b0", **kwargs: Any) -> None:
        super().__init__(arch, **kwargs)

    def build_original_mixer(self, index: int, depth: int, options: dict[str, Any]) -> nn.Module:
        return SpatialReductionAttention(sr_ratio=self.arch["sr_ratios"][index], **options)

    def build_downsample(self, index: int, in_channels: int) -> nn.Module:
        kernel_size, stride = (7, 4) if index == 0 else (3, 2)
        return PatchEmbed(in_channels, self.embed_dims[index], kernel_size, stride)

    def build_stage_norm(self, index: int) -> nn.Module:
        return nn.LayerNorm(self.embed_dims[index], eps=self.norm_eps)
