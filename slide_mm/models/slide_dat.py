"""Slide-DAT."""

from functools import partial
from typing import Any, ClassVar

from torch import nn

from slide_mm.checkpoints.sources import dat
from slide_mm.layers import (
    DeformableAttention,
    DepthwiseConvMlp,
    LocalPerception,
    NeighbourhoodAttention,
    PatchEmbed,
    ShiftedWindowAttention,
)
from slide_mm.layers.arguments import flag, whole_number
from slide_mm.layers.window_attention import MAX_WINDOW_SIZE
from slide_mm.models.backbone import HierarchicalBackbone
from slide_mm.models.families import register_family

# Of the network that moves points, by stage; and of points, in DAT++.
_OFFSET_KERNELS = (9, 7, 5, 3)
_STRIDES = (8, 4, 2, 1)

_SMALL = {"embed_dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24)}
_BASE = {"embed_dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32)}


@register_family("slide-dat", dat.LAYOUTS)
class SlideDAT(HierarchicalBackbone):
    """DAT or DAT++, of which early stages slide.

    DAT, CVPR 2022, arXiv 2201.00520: its first two stages have windows, which every other block
    shifts; in the last two every other block attends to points that the map moves. DAT++, arXiv
    2309.01430: every other block attends to points, in the last stage every one, and the others
    to 7 x 7 neighbours; a depth-wise convolution goes before each block and another one is in each
    MLP. A stage that slides has Slide Attention in all its blocks, which is our choice: nobody has
    published a DAT that slides.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, with ``plus_`` in front DAT++'s, or a dict of
            ``embed_dims``, ``depths``, ``num_heads`` and ``num_groups``, the groups of channels
            that have points of their own.
        plus: Whether the parts are DAT++'s. Default: as the name of ``arch`` says; DAT's of a dict.
        window_size: Side of DAT's windows, in tokens.
        pretrain_img_size: Side of the images that the tables of points' biases are learned on, in
            pixels. Images of other sizes share the tables.
        **kwargs: See :class:`~slide_mm.models.backbone.HierarchicalBackbone`.
    """

    arch_zoo: ClassVar = {
        "tiny": {**_SMALL, "depths": (2, 2, 6, 2), "num_groups": (1, 1, 3, 6)},
        "small": {**_SMALL, "depths": (2, 2, 18, 2), "num_groups": (1, 1, 3, 6)},
        "base": {**_BASE, "depths": (2, 2, 18, 2), "num_groups": (1, 1, 4, 8)},
        "plus_tiny": {
            "embed_dims": (64, 128, 256, 512),
            "num_heads": (2, 4, 8, 16),
            "depths": (2, 4, 18, 2),
            "num_groups": (1, 2, 4, 8),
        },
        "plus_small": {**_SMALL, "depths": (2, 4, 18, 2), "num_groups": (1, 2, 3, 6)},
        "plus_base": {**_BASE, "depths": (2, 4, 18, 2), "num_groups": (2, 4, 8, 16)},
    }
    first_conv = "stages.0.downsample.0.proj"

    def __init__(
        self,
        arch="tiny",
        plus: bool | None = None,
        window_size: int = 7,
        pretrain_img_size: int = 224,
        **kwargs: Any,
    ) -> None:
        if plus is None:
            plus = isinstance(arch, str) and arch.startswith("plus_")
        self.plus = flag("plus", plus)
        self.window_size = whole_number("window_size", window_size, 1, MAX_WINDOW_SIZE)
        # The last stage's table is of a token for each 32 pixels.
        self.pretrain_img_size = whole_number("pretrain_img_size", pretrain_img_size, 32, 4096)
        if self.plus:
            self.mlp_type = partial(DepthwiseConvMlp, skip=True)
        super().__init__(arch, **kwargs)

    def build_original_mixer(self, index: int, depth: int, options: dict[str, Any]) -> nn.Module:
        is_second = depth % 2 == 1
        samples = (is_second or index == 3) if self.plus else (is_second and index >= 2)
        if samples:
            return DeformableAttention(
                num_groups=self.arch["num_groups"][index],
                stride=_STRIDES[index] if self.plus else 1,
                kernel_size=_OFFSET_KERNELS[index],
                map_size=self.pretrain_img_size // 2 ** (index + 2),
                plus=self.plus,
                **options,
            )
        if self.plus:
            return NeighbourhoodAttention(kernel_size=7, **options)
        windows = ShiftedWindowAttention(window_size=self.window_size, shifted=is_second, **options)
        if is_second:
            windows.shift_size = (self.window_size + 1) // 2  # Swin rounds it down.
        return windows

    def build_downsample(self, index: int, in_channels: int) -> nn.Module:
        embed_dims = self.embed_dims[index]
        if index > 0:
            kernel_size = 3 if self.plus else 2
            return PatchEmbed(in_channels, embed_dims, kernel_size, stride=2, bias=False)
        if self.plus:
            half = PatchEmbed(in_channels, embed_dims // 2, kernel_size=3, stride=2)
            whole = PatchEmbed(embed_dims // 2, embed_dims, kernel_size=3, stride=2)
            return nn.Sequential(half, nn.GELU(), whole)
        # So that the first convolution has one name in both.
        return nn.Sequential(PatchEmbed(in_channels, embed_dims, kernel_size=4, stride=4))

    def build_local(self, index: int) -> nn.Module | None:
        return LocalPerception(self.embed_dims[index]) if self.plus else None

    def build_out_norm(self, embed_dims: int) -> nn.Module:
        return nn.LayerNorm(embed_dims, eps=self.norm_eps)

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """Leave a layer as PyTorch starts it, as the authors' code does in effect."""
