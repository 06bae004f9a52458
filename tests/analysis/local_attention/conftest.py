import pytest
import torch

from slide_mm.analysis.local_attention.photographs import Photograph
from slide_mm.models import SlideSwin

ARCH = {"embed_dims": (8, 16, 16, 32), "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4)}


def make_backbone(**options):
    return SlideSwin(arch=ARCH, **options).eval().requires_grad_(False)


@pytest.fixture
def backbones():
    torch.manual_seed(0)
    return {"sliding": make_backbone(), "original": make_backbone(slide_stages=())}


@pytest.fixture
def photograph():
    """Noise, 192 x 256."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (192, 256, 3), dtype=torch.uint8, generator=generator)
    image = pixels.permute(2, 0, 1)[None] / 64 - 2
    return Photograph("noise", pixels.numpy(), image, [(100, 90), (255, 191)])
