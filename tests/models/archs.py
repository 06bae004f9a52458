"""Every family that is registered, with architectures for tests."""

import pytest
import torch

from slide_mm.models import FAMILIES

FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
STRIDES = (4, 8, 16, 32)


def narrow(family):
    """An architecture of few channels and blocks, with all that the family's have."""
    arch = next(iter(family.backbone.arch_zoo.values()))
    embed_dims = tuple(8 * heads for heads in arch["num_heads"])
    return {**arch, "embed_dims": embed_dims, "depths": (2, 1, 2, 1)}


def build(family, **options):
    torch.manual_seed(0)
    return family.backbone(**{"arch": narrow(family), **options})
