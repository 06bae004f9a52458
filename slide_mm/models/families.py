"""The families of backbones: all that lists them reads this registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.registry import MODELS

from slide_mm.checkpoints import SOURCES, Rule, Source
from slide_mm.models.backbone import HierarchicalBackbone
from slide_mm.models.classifiers import Classifier, make_classifier


@dataclass(frozen=True)
class Family:
    """A backbone and what goes with it.

    Attributes:
        name: In the names of files and on command lines, such as ``'slide-swin'``.
        backbone: Its class, whose ``arch_zoo`` lists the archs.
        classifier: The classifier on it.
        timm_name: What timm's names of its archs begin with, such as ``'slide_swin'``.
    """

    name: str
    backbone: type[HierarchicalBackbone]
    classifier: type[Classifier]
    timm_name: str


FAMILIES: dict[str, Family] = {}


def register_family(
    name: str, layouts: Mapping[str, tuple[Rule, ...]], timm_name: str | None = None
) -> Callable[[type[HierarchicalBackbone]], type[HierarchicalBackbone]]:
    """Register a family's backbone, in MMEngine's root registry too, and its classifiers in timm.

    Args:
        name: See :class:`Family`.
        layouts: Checkpoints that others have of it: their rules by the name of the layout. Weights
            saved by slide_mm itself need none.
        timm_name: See :class:`Family`. Default: ``name`` with underscores.

    Returns:
        A decorator of the backbone's class.
    """
    timm_name = timm_name or name.replace("-", "_")

    def register(backbone: type[HierarchicalBackbone]) -> type[HierarchicalBackbone]:
        MODELS.register_module(module=backbone)
        SOURCES.update((key, Source(backbone.__name__, rules)) for key, rules in layouts.items())
        classifier = make_classifier(backbone, timm_name)
        FAMILIES[name] = Family(name, backbone, classifier, timm_name)
        return backbone

    return register


def list_archs() -> list[str]:
    """List all architectures, such as ``'slide-swin/tiny'``."""
    return [
        f"{name}/{arch}" for name, family in FAMILIES.items() for arch in family.backbone.arch_zoo
    ]


def build_backbone(arch: str, **options: Any) -> HierarchicalBackbone:
    """Build a backbone by its name.

    Args:
        arch: One of :func:`list_archs`.
        **options: Further arguments of the backbone.

    Raises:
        ValueError: If there is no such arch, or an argument is out of its range.
    """
    if arch not in list_archs():
        raise ValueError(f"arch is {arch}: choose one of {', '.join(list_archs())}")
    family, name = arch.split("/")
    return FAMILIES[family].backbone(name, **options)
