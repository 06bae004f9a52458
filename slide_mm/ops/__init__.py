"""Functions on tensors, without parameters."""

from slide_mm.ops.backends import BACKENDS
from slide_mm.ops.neighbourhood_attention import neighbourhood_attention
from slide_mm.ops.slide_attention import (
    slide_attention,
    slide_attention_qkvpacked,
    slide_attention_weights,
)

__all__ = [
    "BACKENDS",
    "neighbourhood_attention",
    "slide_attention",
    "slide_attention_qkvpacked",
    "slide_attention_weights",
]
