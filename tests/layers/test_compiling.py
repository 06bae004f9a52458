import pytest
import torch

from slide_mm.layers import (
    AbsolutePositionEmbedding,
    CrossShapedAttention,
    DeformableAttention,
    NeighbourhoodAttention,
    ShiftedWindowAttention,
    SlideAttention,
)

LAYERS = {
    "slide": lambda: SlideAttention(8, 2),
    "window": lambda: ShiftedWindowAttention(8, 2, window_size=3, shifted=True),
    "stripes": lambda: CrossShapedAttention(8, 2),
    "neighbourhood": lambda: NeighbourhoodAttention(8, 2, kernel_size=3),
    "points": lambda: DeformableAttention(8, 2, map_size=4),
    "position": lambda: AbsolutePositionEmbedding(8, size=4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_the_same_before_while_and_after_it_is_compiled(name):
    """PyTorch 2.1's compiler replaces functions that it takes for constant by their results."""
    torch.manual_seed(0)
    layer, x = LAYERS[name]().eval(), torch.randn(1, 5, 6, 8)
    before = layer(x)
    fullgraph = torch.__version__ >= (2, 5)  # Before, a `zip` ends a graph.
    compiled = torch.compile(layer, fullgraph=fullgraph, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, before)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)
