"""The scenes of the bundled demo."""

from slide_mm.datasets.demo_scenes import CLASSES, make_demo_scenes

__all__ = ["CLASSES", "make_demo_scenes"]
