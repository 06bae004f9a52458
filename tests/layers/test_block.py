import pytest
import torch
from torch import nn
from torch.nn.modules import module as nn_module

from slide_mm.layers import Block, DepthwiseConvMlp, Mlp, SlideAttention, block, mlp

SHAPES = [(2, 9, 4), (1, 37, 5), (3, 64, 2), (1, 1, 30), (0, 40, 6)]


def make_block(kind, kernel_size):
    module = Block(8, SlideAttention(8, 2, kernel_size), kind(8, 16), drop_path=0.5)
    return module.double().eval()


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("kind", [Mlp, DepthwiseConvMlp])
@pytest.mark.parametrize("num_rows", [1, 4, 100])
def test_bands_join_to_the_whole(kind, kernel_size, num_rows):
    module = make_block(kind, kernel_size)
    for shape in SHAPES:
        x = torch.randn(*shape, 8, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(module.forward_bands(x, num_rows), module(x))


def test_bands_are_for_inference_that_nobody_watches(monkeypatch):
    x = torch.randn(1, 33, 4, 8, dtype=torch.float64)
    monkeypatch.setattr(block, "_CPU_BAND", 0)
    monkeypatch.setattr(Mlp, "banded_from", 32 * 4 * 16 * 8)
    module = make_block(Mlp, 3)
    bands = []
    monkeypatch.setattr(module, "forward_bands", lambda x, rows: bands.append(rows) or x)
    module(x)
    module.train()
    with torch.no_grad():
        module(x)
        module.eval()
        module(x[:, :32])
        assert bands == []
        module(x)
    assert bands == [16]


def test_mixers_that_see_the_whole_map_get_it(monkeypatch):
    monkeypatch.setattr(Mlp, "banded_from", 0)
    heights = []

    class Mixer(nn.Module):
        def forward(self, x):
            heights.append(x.shape[1])
            return x

    module = Block(8, Mixer(), Mlp(8, 16)).eval()
    with torch.no_grad():
        module(torch.randn(1, 40, 3, 8))
    assert heights == [40]


GLOBALLY = [nn_module.register_module_forward_hook, nn_module.register_module_forward_pre_hook]


@pytest.mark.parametrize("kind", [Mlp, DepthwiseConvMlp])
@pytest.mark.parametrize("register", ["forward_hook", "forward_pre_hook", *GLOBALLY])
def test_hooks_see_whole_maps(kind, register, monkeypatch):
    """Those of a part, and those of all modules."""
    monkeypatch.setattr(block, "_CPU_BAND", 0)
    monkeypatch.setattr(mlp, "_CPU_CHUNK", 0)
    monkeypatch.setattr(kind, "banded_from", 0)
    module, seen = make_block(kind, 3), {}

    def look(part, inputs, *_):
        seen.setdefault(part, []).append(inputs[0].numel() // inputs[0].shape[-1])

    parts = [module.norm1, module.mixer.qkv, module.mlp.fc1, module.mlp.fc2]
    x = torch.randn(2, 33, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
        for part in parts:
            seen.clear()
            watch = register if callable(register) else getattr(part, f"register_{register}")
            handle = watch(look)
            torch.testing.assert_close(module(x), expected)
            handle.remove()
            assert seen[part] == [2 * 33 * 4]
