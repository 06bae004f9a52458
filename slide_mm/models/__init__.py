"""Backbones, registered in MMEngine's root registry, and classifiers, registered with timm."""

from slide_mm.models import classifiers
from slide_mm.models.slide_pvt import SlidePVT
from slide_mm.models.slide_pvt_v2 import SlidePVTv2
from slide_mm.models.slide_swin import SlideSwin

__all__ = ["SlidePVT", "SlidePVTv2", "SlideSwin", "classifiers"]
