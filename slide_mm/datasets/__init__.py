"""The scenes of the bundled demo, and a photograph."""

from slide_mm.datasets.demo_scenes import CLASSES, make_demo_scenes
from slide_mm.datasets.photograph import bundled_photograph

__all__ = ["CLASSES", "bundled_photograph", "make_demo_scenes"]
