"""Starts and borders of Slide Attention that a training from scratch may do better with."""

from projects.from_scratch.alternatives import (
    ConvolutionalMlps,
    SlidePVTv2RepeatedBorders,
    ZeroDeformedKernels,
)

__all__ = ["ConvolutionalMlps", "SlidePVTv2RepeatedBorders", "ZeroDeformedKernels"]
