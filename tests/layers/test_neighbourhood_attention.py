import pytest
import torch
from torch.nn import functional as F

from slide_mm.layers import NeighbourhoodAttention
from slide_mm.ops.neighbourhood_attention import definition
from tests.needs import needs_pytorch


def make_layer(kernel_size=3, dilation=1, **options):
    torch.manual_seed(0)
    layer = NeighbourhoodAttention(8, 2, kernel_size, dilation, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("size", [(9, 7), (6, 6), (5, 8), (9, 2), (1, 1), (3, 4)])
@pytest.mark.parametrize("dilation", [1, 2])
@torch.no_grad()
def test_equals_the_definition_on_a_map_that_is_large_enough(size, dilation):
    """Of a smaller one, as NATTEN 0.14.6, with zeros before the projection to query, key, value."""
    layer, (height, width) = make_layer(3, dilation), size
    x = torch.randn(2, height, width, 8, dtype=torch.float64)
    large = x.new_zeros(2, max(height, 3 * dilation), max(width, 3 * dilation), 8)
    large[:, :height, :width] = x
    qkv = F.linear(large, layer.qkv.weight, layer.qkv.bias).unflatten(-1, (3, 2, 4))
    expected = definition(qkv, layer.relative_position_bias_table, dilation)
    expected = layer.proj(expected[:, :height, :width].flatten(-2))
    torch.testing.assert_close(layer(x), expected)


def test_dropout_is_for_training():
    layer, x = make_layer(attn_drop=0.5), torch.randn(1, 4, 4, 8, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_tables_of_another_kernel_are_resampled():
    """Between the centres of its cells, as Swin's are."""
    layer = make_layer(3)
    rows = torch.arange(13.0)[:, None].expand(13, 13)
    table = torch.stack([rows, -rows])
    resampled = layer.resample("relative_position_bias_table", table)
    assert resampled.shape == (2, 5, 5)
    centre = resampled[:, 2]
    torch.testing.assert_close(centre, torch.tensor([[6.0], [-6.0]]).expand(2, 5))
    torch.testing.assert_close(resampled[0], -resampled[1])
    for name, wrong in (("other", table), ("", table), ("relative_position_bias_table", table[:1])):
        assert layer.resample(name, wrong) is None
    assert layer.resample("relative_position_bias_table", table[:, 1:]) is None


@needs_pytorch("2.7", "a graph for open sizes")
def test_graph_holds_for_any_size():
    """Whether or not a neighbourhood fits in the map."""
    layer, side = make_layer(3, 2).eval(), torch.export.Dim.DYNAMIC
    with torch.no_grad():
        example = (torch.randn(2, 9, 14, 8).double(),)
        program = torch.export.export(layer, example, dynamic_shapes=({0: side, 1: side, 2: side},))
        graph = program.module(check_guards=False)
        for size in ((3, 8, 8), (2, 4, 13), (2, 2, 3), (2, 11, 4)):
            x = torch.randn(*size, 8).double()
            torch.testing.assert_close(graph(x), layer(x))
