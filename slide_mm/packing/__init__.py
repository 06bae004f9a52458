"""Models in folders that can be handed on."""

from slide_mm.packing.backbones import pack_backbone
from slide_mm.packing.models import pack_model

__all__ = ["pack_backbone", "pack_model"]
