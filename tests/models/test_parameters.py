"""Parameters of the original archs with 1000 classes, as their authors' code has them."""

import pytest
import torch

from slide_mm.models import FAMILIES

PARAMETERS = {
    "slide-cswin/tiny": 22_320_552,
    "slide-cswin/small": 34_643_304,
    "slide-cswin/base": 77_382_184,
    "slide-cswin/large": 173_262_664,
    "slide-nat/mini": 19_984_174,
    "slide-nat/tiny": 27_901_582,
    "slide-nat/small": 50_743_297,
    "slide-nat/base": 89_769_652,
    "slide-dat/tiny": 28_319_138,
    "slide-dat/small": 49_700_402,
    "slide-dat/base": 87_881_632,
    "slide-dat/plus_tiny": 23_962_876,
    "slide-dat/plus_small": 53_127_366,
    "slide-dat/plus_base": 93_690_640,
}

# At 384 pixels, DAT's windows and tables are larger.
LARGE_DAT = 88_178_272


@pytest.mark.parametrize("name", PARAMETERS)
def test_original_has_the_authors_parameters(name):
    family, arch = name.split("/")
    with torch.device("meta"):
        model = FAMILIES[family].classifier(arch, slide_stages=())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_windows_and_tables_for_large_images():
    options = {"window_size": 12, "pretrain_img_size": 384}
    with torch.device("meta"):
        model = FAMILIES["slide-dat"].classifier("base", slide_stages=(), **options)
    assert sum(p.numel() for p in model.parameters()) == LARGE_DAT
