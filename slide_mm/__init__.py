"""Slide-Transformer backbones for MMEngine projects.

Importing the package registers its backbones (:mod:`slide_mm.models`) in MMEngine's root registry,
where MMDetection, MMSegmentation and every other MMEngine library find them.
"""

try:
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "mmengine":
        raise
    raise ImportError(
        "slide_mm registers its backbones with MMEngine, which is not installed: "
        "run `pip install onedl-mmengine` (the maintained line) or `pip install mmengine` "
        "(OpenMMLab's own)"
    ) from None

from slide_mm import layers, models, ops

__version__ = "0.1.0"

__all__ = ["__version__", "layers", "models", "ops"]
