import copy

import pytest
import torch
from torch import nn

from slide_mm.engine import onnx_bands
from slide_mm.engine.onnx_bands import BandedBlock, ChunkedReduction, ConvMlp, fold_norm
from slide_mm.layers import (
    Block,
    DepthwiseConvMlp,
    Mlp,
    SlideAttention,
    SpatialReductionAttention,
)

SHAPES = [(1, 1, 1), (2, 5, 9), (1, 13, 4), (3, 8, 8), (1, 3, 40)]


def make_block(kernel_size=3, kind=Mlp):
    torch.manual_seed(0)
    block = Block(12, SlideAttention(12, 3, kernel_size), kind(12, 20)).double().eval()
    for parameter in (*block.norm1.parameters(), block.mixer.relative_position_bias_table):
        nn.init.normal_(parameter)
    block.mixer.switch_to_deploy()
    return block


@pytest.mark.parametrize("num_tokens", [1, 20, 10**6])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("kind", [Mlp, DepthwiseConvMlp])
def test_bands_join_to_the_whole(kind, kernel_size, num_tokens, monkeypatch):
    """Bands of one row, of some, the last of them partly below the image, and of all rows."""
    monkeypatch.setattr(onnx_bands, "_BAND_SIZE", 12 * num_tokens)
    block = make_block(kernel_size, kind)
    folded = copy.deepcopy(block)
    folded.norm1, folded.mixer.qkv = fold_norm(block.norm1, block.mixer.qkv)
    banded = BandedBlock(folded)
    for shape in SHAPES:
        x = torch.randn(*shape, 12).double()
        with torch.no_grad():
            torch.testing.assert_close(banded(x), block(x))


@pytest.mark.parametrize("max_weights", [1, 100, 10**6])
@pytest.mark.parametrize("sr_ratio", [1, 3])
def test_chunks_join_to_the_whole(sr_ratio, max_weights, monkeypatch):
    """Chunks of a query a part, of some, the last with some twice, and of all queries."""
    monkeypatch.setattr(onnx_bands, "_MAX_WEIGHTS", max_weights)
    layer = SpatialReductionAttention(12, 3, sr_ratio).double()
    chunked = ChunkedReduction(layer)
    for shape in SHAPES:
        x = torch.randn(*shape, 12).double()
        torch.testing.assert_close(chunked(x), layer(x))


def test_convolutions_equal_the_depthwise_mlp():
    mlp = DepthwiseConvMlp(6, 10).double()
    for shape in SHAPES:
        x = torch.randn(*shape, 6).double()
        torch.testing.assert_close(ConvMlp(mlp)(x), mlp(x))


@pytest.mark.parametrize("bias", [False, True])
def test_weights_of_a_norm_move_into_the_layer_behind_it(bias):
    norm, linear = nn.LayerNorm(6, eps=1e-3).double(), nn.Linear(6, 4, bias).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    folded_norm, folded = fold_norm(norm, linear)
    for shape in (*SHAPES, (5, 1)):
        x = torch.randn(*shape, 6).double()
        torch.testing.assert_close(folded(folded_norm(x)), linear(norm(x)))
