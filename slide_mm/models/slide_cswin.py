"""Slide-CSWin."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from slide_mm.checkpoints.sources import cswin
from slide_mm.layers import CrossShapedAttention, PatchEmbed
from slide_mm.layers.arguments import refuse, sequence, whole_number
from slide_mm.models.arguments import NUM_STAGES
from slide_mm.models.backbone import HierarchicalBackbone, init_linear
from slide_mm.models.families import register_family


@register_family("slide-cswin", cswin.LAYOUTS)
class SlideCSWin(HierarchicalBackbone):
    """CSWin Transformer whose early stages slide.

    Slide-Transformer, CVPR 2023, arXiv 2304.04237; CSWin Transformer, CVPR 2022, arXiv 2107.00652.
    Slide-Transformer's authors have published figures of Slide-CSWin, but neither its code nor
    which of its stages slide. That they are the first two, with 3 x 3 neighbours, and that Slide
    Attention replaces stripes and positional encoding alike, is our reading.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, or a dict of ``embed_dims``,
            ``depths`` and ``num_heads``. Stages with stripes need even ``num_heads``.
        stripe_widths: Widths of the stripes in the first three stages, in tokens; in the last
            stage, each token sees the whole map. The authors take ``(1, 2, 12)`` for images of 384
            pixels.
        **kwargs: See :class:`~slide_mm.models.backbone.HierarchicalBackbone`.
    """

    arch_zoo: ClassVar = {
        "tiny": {
            "embed_dims": (64, 128, 256, 512),
            "depths": (1, 2, 21, 1),
            "num_heads": (2, 4, 8, 16),
        },
        "small": {
            "embed_dims": (64, 128, 256, 512),
            "depths": (2, 4, 32, 2),
            "num_heads": (2, 4, 8, 16),
        },
        "base": {
            "embed_dims": (96, 192, 384, 768),
            "depths": (2, 4, 32, 2),
            "num_heads": (4, 8, 16, 32),
        },
        # The paper prints 48 heads for the last stage, and the authors' code has 24.
        "large": {
            "embed_dims": (144, 288, 576, 1152),
            "depths": (2, 4, 32, 2),
            "num_heads": (6, 12, 24, 24),
        },
    }

    init_layer = staticmethod(init_linear)

    def __init__(
        self, arch="tiny", stripe_widths: Sequence[int] = (1, 2, 7), **kwargs: Any
    ) -> None:
        wanted = "give the widths of three stages"
        widths = sequence("stripe_widths", stripe_widths, wanted)
        if len(widths) != NUM_STAGES - 1:
            raise refuse("stripe_widths", stripe_widths, wanted)
        self.stripe_widths = tuple(whole_number("stripe_widths", width) for width in widths)
        super().__init__(arch, **kwargs)

    def build_original_mixer(self, index: int, depth: int, options: dict[str, Any]) -> nn.Module:
        return CrossShapedAttention(stripe_width=(*self.stripe_widths, None)[index], **options)

    def build_downsample(self, index: int, in_channels: int) -> nn.Module:
        embed_dims = self.embed_dims[index]
        if index == 0:
            return PatchEmbed(in_channels, embed_dims, kernel_size=7, stride=4, padding=2)
        return PatchEmbed(in_channels, embed_dims, kernel_size=3, stride=2)

    def build_out_norm(self, embed_dims: int) -> nn.Module:
        return nn.LayerNorm(embed_dims, eps=self.norm_eps)
