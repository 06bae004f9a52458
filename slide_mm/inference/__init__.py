"""Predictions on images of any size."""

from slide_mm.inference.predicting import infer

__all__ = ["infer"]
