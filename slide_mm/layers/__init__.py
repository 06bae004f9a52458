"""Modules that the backbones are made of. Tokens are channels-last, (B, H, W, C)."""

from slide_mm.layers.block import Block, LocalPerception
from slide_mm.layers.cross_shaped_attention import CrossShapedAttention
from slide_mm.layers.deformable_attention import DeformableAttention
from slide_mm.layers.downsampling import PatchEmbed, PatchMerging
from slide_mm.layers.mlp import DepthwiseConvMlp, Mlp
from slide_mm.layers.neighbourhood_attention import NeighbourhoodAttention
from slide_mm.layers.position import AbsolutePositionEmbedding
from slide_mm.layers.slide_attention import SlideAttention
from slide_mm.layers.spatial_reduction_attention import SpatialReductionAttention
from slide_mm.layers.window_attention import ShiftedWindowAttention

__all__ = [
    "AbsolutePositionEmbedding",
    "Block",
    "CrossShapedAttention",
    "DeformableAttention",
    "DepthwiseConvMlp",
    "LocalPerception",
    "Mlp",
    "NeighbourhoodAttention",
    "PatchEmbed",
    "PatchMerging",
    "ShiftedWindowAttention",
    "SlideAttention",
    "SpatialReductionAttention",
]
