"""The scenes of the bundled demo, and crops of objects."""

from slide_mm.datasets.demo_scenes import CLASSES, make_demo_scenes
from slide_mm.datasets.object_crops import crop_objects

__all__ = ["CLASSES", "crop_objects", "make_demo_scenes"]
