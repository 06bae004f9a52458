"""Backbones, registered in MMEngine's root registry, and classifiers, registered with timm."""

import importlib
import pkgutil

from slide_mm.models import classifiers
from slide_mm.models.families import (
    FAMILIES,
    Family,
    build_backbone,
    list_archs,
    register_family,
)

# A family's file registers it: there is no list of them to keep.
for _file in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_file.name)
_BACKBONES = {family.backbone.__name__: family.backbone for family in FAMILIES.values()}
globals().update(_BACKBONES)

__all__ = [
    "FAMILIES",
    "Family",
    "build_backbone",
    "classifiers",
    "list_archs",
    "register_family",
    *_BACKBONES,
]
