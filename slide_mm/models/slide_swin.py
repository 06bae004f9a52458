"""Slide-Swin."""

from collections.abc import Sequence
from typing import Any, ClassVar

from timm.layers import to_ntuple
from torch import nn

from slide_mm.checkpoints.sources import swin
from slide_mm.layers import PatchEmbed, PatchMerging, ShiftedWindowAttention
from slide_mm.layers.arguments import positive_number, refuse, whole_number
from slide_mm.layers.window_attention import MAX_WINDOW_SIZE
from slide_mm.models.arguments import NUM_STAGES
from slide_mm.models.backbone import HierarchicalBackbone
from slide_mm.models.families import register_family


@register_family("slide-swin", swin.LAYOUTS)
class SlideSwin(HierarchicalBackbone):
    """Swin Transformer whose early stages slide.

    Slide-Transformer, CVPR 2023, arXiv 2304.04237; Swin Transformer, ICCV 2021, arXiv 2103.14030.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict of ``embed_dims``, ``depths`` and
            ``num_heads``.
        window_size: Side of the windows in the stages that don't slide, in tokens; one for all
            stages or one for each.
        mlp_ratio: Hidden channels of the MLPs over their input channels.
        **kwargs: See :class:`~slide_mm.models.backbone.HierarchicalBackbone`.
    """

    arch_zoo: ClassVar = {
        "tiny": {
            "embed_dims": (96, 192, 384, 768),
            "depths": (2, 2, 6, 2),
            "num_heads": (3, 6, 12, 24),
        },
        "small": {
            "embed_dims": (96, 192, 384, 768),
            "depths": (2, 2, 18, 2),
            "num_heads": (3, 6, 12, 24),
        },
        "base": {
            "embed_dims": (128, 256, 512, 1024),
            "depths": (2, 2, 18, 2),
            "num_heads": (4, 8, 16, 32),
        },
    }

    def __init__(
        self,
        arch="tiny",
        window_size: int | Sequence[int] = 7,
        mlp_ratio: float = 4.0,
        **kwargs: Any,
    ) -> None:
        wanted = f"give one number to {MAX_WINDOW_SIZE}, or one for each stage"
        sizes = to_ntuple(NUM_STAGES)(window_size)
        if len(sizes) != NUM_STAGES:
            raise refuse("window_size", window_size, wanted)
        self.window_sizes = tuple(
            whole_number("window_size", size, 1, MAX_WINDOW_SIZE, wanted) for size in sizes
        )
        self.mlp_ratio = positive_number("mlp_ratio", mlp_ratio)
        super().__init__(arch, **kwargs)

    def build_original_mixer(self, index: int, depth: int, options: dict[str, Any]) -> nn.Module:
        return ShiftedWindowAttention(
            window_size=self.window_sizes[index], shifted=depth % 2 == 1, **options
        )

    def build_downsample(self, index: int, in_channels: int) -> nn.Module:
        embed_dims = self.embed_dims[index]
        if index == 0:
            return PatchEmbed(in_channels, embed_dims, kernel_size=4, stride=4)
        return PatchMerging(in_channels, embed_dims)

    def build_out_norm(self, embed_dims: int) -> nn.Module:
        return nn.LayerNorm(embed_dims, eps=self.norm_eps)
