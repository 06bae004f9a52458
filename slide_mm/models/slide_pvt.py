"""Slide-PVT."""

from typing import Any, ClassVar

from torch import nn

from slide_mm.checkpoints.sources import pvt
from slide_mm.layers import AbsolutePositionEmbedding, PatchEmbed, SpatialReductionAttention
from slide_mm.layers.arguments import whole_number
from slide_mm.models.backbone import HierarchicalBackbone
from slide_mm.models.families import register_family

PVT_WIDTHS = {
    "embed_dims": (64, 128, 320, 512),
    "num_heads": (1, 2, 5, 8),
    "mlp_ratios": (8, 8, 4, 4),
    "sr_ratios": (8, 4, 2, 1),
}


@register_family("slide-pvt", pvt.LAYOUTS)
class SlidePVT(HierarchicalBackbone):
    """Pyramid Vision Transformer whose early stages slide.

    Slide-Transformer, CVPR 2023, arXiv 2304.04237; PVT, ICCV 2021, arXiv 2102.12122.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'medium'``, ``'large'``, or a dict of ``embed_dims``,
            ``depths``, ``num_heads``, ``mlp_ratios`` and ``sr_ratios``.
        pretrain_img_size: Side of the images the position tables are learned on, in pixels; for
            other sizes the tables are interpolated.
        **kwargs: See :class:`~slide_mm.models.backbone.HierarchicalBackbone`.
    """

    arch_zoo: ClassVar = {
        "tiny": {**PVT_WIDTHS, "depths": (2, 2, 2, 2)},
        "small": {**PVT_WIDTHS, "depths": (3, 4, 6, 3)},
        "medium": {**PVT_WIDTHS, "depths": (3, 4, 18, 3)},
        "large": {**PVT_WIDTHS, "depths": (3, 8, 27, 3)},
    }
    norm_eps = 1e-6

    def __init__(self, arch="tiny", pretrain_img_size: int = 224, **kwargs: Any) -> None:
        # The last stage's table has a position for each 32 pixels.
        self.pretrain_img_size = whole_number("pretrain_img_size", pretrain_img_size, 32, 4096)
        super().__init__(arch, **kwargs)

    def build_original_mixer(self, index: int, depth: int, options: dict[str, Any]) -> nn.Module:
        return SpatialReductionAttention(sr_ratio=self.arch["sr_ratios"][index], **options)

    def build_downsample(self, index: int, in_channels: int) -> nn.Module:
        stride = 4 if index == 0 else 2
        return PatchEmbed(in_channels, self.embed_dims[index], kernel_size=stride, stride=stride)

    def build_position(self, index: int) -> nn.Module:
        return AbsolutePositionEmbedding(
            self.embed_dims[index], size=self.pretrain_img_size // 2 ** (index + 2)
        )
