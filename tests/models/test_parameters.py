"""Parameters of the original archs with 1000 classes, as their authors' code has them."""

import pytest
import torch

from slide_mm.models import FAMILIES

PARAMETERS = {
    "slide-cswin/tiny": 22_320_552,
    "slide-cswin/small": 34_643_304,
    "slide-cswin/base": 77_382_184,
    "slide-cswin/large": 173_262_664,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_original_has_the_authors_parameters(name):
    family, arch = name.split("/")
    with torch.device("meta"):
        model = FAMILIES[family].classifier(arch, slide_stages=())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
