"""What is made of bundled images: the demo's scenes, crops of objects, and a photograph."""

from slide_mm.datasets.demo_scenes import CLASSES, make_demo_scenes
from slide_mm.datasets.object_crops import crop_objects
from slide_mm.datasets.photograph import bundled_photograph

__all__ = ["CLASSES", "bundled_photograph", "crop_objects", "make_demo_scenes"]
