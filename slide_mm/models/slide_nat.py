"""Slide-NAT, and Slide-DiNAT."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from slide_mm.checkpoints.sources import nat
from slide_mm.layers import NeighbourhoodAttention, PatchEmbed
from slide_mm.layers.arguments import odd_number, positive_number, refuse, sequence, whole_number
from slide_mm.layers.neighbourhood_attention import MAX_DILATION
from slide_mm.models.arguments import NUM_STAGES
from slide_mm.models.backbone import HierarchicalBackbone, init_linear
from slide_mm.models.families import register_family

LAYER_SCALE = {"small": 1e-5, "base": 1e-5}


@register_family("slide-nat", nat.LAYOUTS)
class SlideNAT(HierarchicalBackbone):
    """Neighborhood Attention Transformer, or its dilated form DiNAT, whose early stages slide.

    Slide-Transformer, CVPR 2023, arXiv 2304.04237; NAT, CVPR 2023, arXiv 2204.07143; DiNAT, arXiv
    2209.15001. Slide-Transformer's authors have published figures of Slide-NAT, but neither its
    code nor which of its stages slide. That they are the first two, with 3 x 3 neighbours, is our
    reading.

    Args:
        arch: ``'mini'``, ``'tiny'``, ``'small'``, ``'base'``, or a dict of ``embed_dims``,
            ``depths``, ``num_heads`` and ``mlp_ratios``.
        neighbourhood_size: Side of the neighbourhood in the stages that don't slide, odd.
        dilations: For each stage the steps from neighbour to neighbour of its blocks, again and
            again to the last, in the stages that don't slide. DiNAT has, for images of 224 pixels,
            ``((1, 8), (1, 4), (1, 2), (1,))``, for ADE20K ``((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1,
            4), (1, 2))`` and for COCO ``((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3))``.
        layer_scale: What the factors of the blocks' branches start with; 0 for no factors, as
            DiNAT's small arch has none. Default: 1e-5 in ``'small'`` and ``'base'``, else 0.
        **kwargs: See :class:`~slide_mm.models.backbone.HierarchicalBackbone`.
    """

    arch_zoo: ClassVar = {
        "mini": {
            "embed_dims": (64, 128, 256, 512),
            "depths": (3, 4, 6, 5),
            "num_heads": (2, 4, 8, 16),
            "mlp_ratios": (3, 3, 3, 3),
        },
        "tiny": {
            "embed_dims": (64, 128, 256, 512),
            "depths": (3, 4, 18, 5),
            "num_heads": (2, 4, 8, 16),
            "mlp_ratios": (3, 3, 3, 3),
        },
        "small": {
            "embed_dims": (96, 192, 384, 768),
            "depths": (3, 4, 18, 5),
            "num_heads": (3, 6, 12, 24),
            "mlp_ratios": (2, 2, 2, 2),
        },
        "base": {
            "embed_dims": (128, 256, 512, 1024),
            "depths": (3, 4, 18, 5),
            "num_heads": (4, 8, 16, 32),
            "mlp_ratios": (2, 2, 2, 2),
        },
    }
    first_conv = "stages.0.downsample.0.proj"
    init_layer = staticmethod(init_linear)

    def __init__(
        self,
        arch="mini",
        neighbourhood_size: int = 7,
        dilations: Sequence[Sequence[int]] = ((1,),) * NUM_STAGES,
        layer_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.neighbourhood_size = odd_number("neighbourhood_size", neighbourhood_size)
        self.dilations = check_dilations(dilations)
        if layer_scale is None:
            layer_scale = LAYER_SCALE.get(arch, 0) if isinstance(arch, str) else 0
        if layer_scale != 0 or isinstance(layer_scale, bool):
            self.layer_scale = positive_number("layer_scale", layer_scale)
        super().__init__(arch, **kwargs)

    def build_original_mixer(self, index: int, depth: int, options: dict[str, Any]) -> nn.Module:
        dilations = self.dilations[index]
        return NeighbourhoodAttention(
            kernel_size=self.neighbourhood_size,
            dilation=dilations[depth % len(dilations)],
            **options,
        )

    def build_downsample(self, index: int, in_channels: int) -> nn.Module:
        embed_dims, options = self.embed_dims[index], {"kernel_size": 3, "stride": 2}
        if index:
            return PatchEmbed(in_channels, embed_dims, bias=False, **options)
        half = PatchEmbed(in_channels, (embed_dims + 1) // 2, **options)
        half.norm = nn.Identity()
        return nn.Sequential(half, PatchEmbed(half.proj.out_channels, embed_dims, **options))

    def build_out_norm(self, embed_dims: int) -> nn.Module:
        return nn.LayerNorm(embed_dims, eps=self.norm_eps)


def check_dilations(dilations: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Take each stage's dilations.

    Raises:
        ValueError: If they are no whole numbers of four stages, or too many.
    """
    name, wanted = "dilations", f"give whole numbers to {MAX_DILATION} for each of four stages"
    stages = [sequence(name, stage, wanted) for stage in sequence(name, dilations, wanted)]
    if len(stages) != NUM_STAGES or not all(stages):
        raise refuse(name, dilations, wanted)
    return tuple(
        tuple(whole_number(name, number, 1, MAX_DILATION, wanted) for number in stage)
        for stage in stages
    )
