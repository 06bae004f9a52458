"""Classifiers of timm in MMEngine's Runner."""

from projects.imagenet_pretrain.classification import (
    TimmClassifier,
    TimmImageFolder,
    TopKAccuracy,
)

__all__ = ["TimmClassifier", "TimmImageFolder", "TopKAccuracy"]
