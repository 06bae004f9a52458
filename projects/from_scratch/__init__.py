"""Starts and borders of Slide Attention that a training from scratch may do better with."""

from projects.from_scratch.alternatives import SlidePVTv2RepeatedBorders, ZeroDeformedKernels

__all__ = ["SlidePVTv2RepeatedBorders", "ZeroDeformedKernels"]
