import random

import pytest
import torch
from torch import nn
from torch.nn.modules import module as nn_module

from slide_mm.layers import (
    Block,
    DepthwiseConvMlp,
    LocalPerception,
    Mlp,
    SlideAttention,
)
from slide_mm.models import cpu

SHAPES = [(2, 9, 4), (1, 37, 5), (3, 64, 2), (1, 1, 30), (0, 40, 6)]
MLPS = [Mlp, DepthwiseConvMlp]


def make_block(mlp, kernel_size=3, mixer=None, **options):
    torch.manual_seed(0)
    mixer = mixer or SlideAttention(8, 2, kernel_size)
    return Block(8, mixer, mlp(8, 16), drop_path=0.5, **options).double().eval()


@pytest.fixture
def cut_all(monkeypatch):
    """As if every map were large."""
    monkeypatch.setattr(cpu, "_BAND", 0)
    monkeypatch.setattr(cpu, "_PIECE", 0)
    monkeypatch.setattr(cpu, "_BANDED_FROM", {0: 0, 1: 0})


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("num_rows", [1, 4, 100])
def test_bands_join_to_the_whole(mlp, kernel_size, num_rows):
    for options in ({}, {"local": LocalPerception(8), "layer_scale": 0.5}):
        block = make_block(mlp, kernel_size, **options)
        for shape in SHAPES:
            x = torch.randn(*shape, 8, dtype=torch.float64)
            with torch.no_grad():
                torch.testing.assert_close(cpu.run_in_bands(block, x, num_rows), block(x))


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_tokens_change_nothing(seed, monkeypatch):
    rng = random.Random(seed)
    block = make_block(Mlp, mixer=nn.Identity(), local=LocalPerception(8))
    x = torch.randn(rng.randint(0, 3), *rng.choices(range(1, 30), k=2), 8).double()
    lengths = []
    whole = block.mlp.fc2.forward
    monkeypatch.setattr(block.mlp.fc2, "forward", lambda x: lengths.append(len(x)) or whole(x))
    monkeypatch.setattr(cpu, "_PIECE", 8 * 16 * 50)
    results = []
    for run in (cpu.run_block, lambda block, x: block(x)):
        inputs = (x.clone().requires_grad_(), *block.parameters())
        output = run(block, inputs[0])
        assert output.shape == x.shape
        results.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    torch.testing.assert_close(*results)
    num_tokens = x[..., 0].numel()
    pieces = lengths[:-1]
    assert sum(pieces) == num_tokens
    assert max(pieces) <= 50


def test_branches_are_dropped_for_whole_samples(cut_all):
    block = make_block(Mlp, mixer=nn.Identity()).train()
    x = torch.randn(8, 40, 3, 8, dtype=torch.float64)
    nn.init.zeros_(block.norm1.weight)  # Leaves the MLP's branch alone to be dropped.
    dropped = cpu.run_block(block, x) == x
    assert {bool(sample.all()) for sample in dropped} == {True, False}
    assert not any(sample.any() and not sample.all() for sample in dropped)


def test_bands_are_for_inference_on_large_maps(monkeypatch):
    x = torch.randn(1, 33, 4, 8, dtype=torch.float64)
    monkeypatch.setattr(cpu, "_BAND", 0)
    monkeypatch.setitem(cpu._BANDED_FROM, 0, 32 * 4 * 16 * 8)
    block, bands = make_block(Mlp), []
    monkeypatch.setattr(cpu, "run_in_bands", lambda block, x, rows: bands.append(rows) or x)
    cpu.run_block(block, x)
    with torch.no_grad():
        cpu.run_block(block.train(), x)
        cpu.run_block(block.eval(), x[:, :32])
        assert bands == []
        cpu.run_block(block, x)
    assert bands == [16]


@pytest.mark.parametrize("mlp", MLPS)
def test_mixers_that_see_the_whole_map_get_it(mlp, cut_all):
    heights = []

    class Mixer(nn.Module):
        def forward(self, x):
            heights.append(x.shape[1])
            return x

    with torch.no_grad():
        cpu.run_block(make_block(mlp, mixer=Mixer()), torch.randn(1, 40, 3, 8).double())
    assert heights == [40]


GLOBALLY = [nn_module.register_module_forward_hook, nn_module.register_module_forward_pre_hook]


@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("register", ["forward_hook", "forward_pre_hook", *GLOBALLY])
def test_hooks_see_whole_maps(mlp, register, cut_all):
    """Those of a block, of a part, and of all modules."""
    block, seen = make_block(mlp), {}

    def look(part, inputs, *_):
        seen.setdefault(part, []).append(inputs[0].numel() // inputs[0].shape[-1])

    x = torch.randn(2, 33, 4, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x)
        for part in [block, block.norm1, block.mixer.qkv, block.mlp.fc1, block.mlp.fc2]:
            seen.clear()
            watch = register if callable(register) else getattr(part, f"register_{register}")
            handle = watch(look)
            torch.testing.assert_close(cpu.run_block(block, x), expected)
            handle.remove()
            assert seen[part] == [2 * 33 * 4]
