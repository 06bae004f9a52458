import pytest
import torch
from torch import nn

from slide_mm.engine.onnx_windows import IndexedWindowAttention
from slide_mm.layers import ShiftedWindowAttention


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_indices_equal_the_way_through_windows(shifted, qkv_bias):
    """With padding on two sides, one and none, one window and many."""
    torch.manual_seed(0)
    layer = ShiftedWindowAttention(12, 3, 4, shifted, qkv_bias).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    indexed = IndexedWindowAttention(layer)
    for shape in [(1, 1, 1), (2, 5, 9), (1, 13, 4), (3, 8, 8), (1, 3, 40)]:
        x = torch.randn(*shape, 12).double()
        with torch.no_grad():
            torch.testing.assert_close(indexed(x), layer(x))
