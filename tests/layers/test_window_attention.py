import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from slide_mm.layers import ShiftedWindowAttention
from slide_mm.layers.window_attention import cached_shifted_window_mask
from tests.needs import needs_pytorch


def dense_reference(layer, x):
    """Every pair of tokens of the padded, shifted map, those of other windows or regions masked."""
    height, width = x.shape[1:3]
    size = layer.window_size
    rows, columns = -(-height // size) * size, -(-width // size) * size
    padded = x.new_zeros(x.shape[0], rows, columns, x.shape[3])
    padded[:, :height, :width] = x
    shift_row = 0 if height <= size else layer.shift_size
    shift_column = 0 if width <= size else layer.shift_size
    row = torch.arange(rows)[:, None].expand(rows, columns).flatten()
    column = torch.arange(columns).expand(rows, columns).flatten()
    # A window after a cyclic shift holds what lies (row - shift) // size together, without wrap.
    window = torch.stack(
        [
            (row - shift_row).div(size, rounding_mode="floor"),
            (column - shift_column).div(size, rounding_mode="floor"),
        ]
    )
    same = (window[:, :, None] == window[:, None]).all(0)
    offset = torch.stack([row[:, None] - row, column[:, None] - column]).clamp(1 - size, size - 1)
    index = (offset[0] + size - 1) * (2 * size - 1) + offset[1] + size - 1
    bias = layer.relative_position_bias_table[index].permute(2, 0, 1)
    query, key, value = (
        layer.qkv(padded)
        .view(x.shape[0], rows * columns, 3, layer.num_heads, -1)
        .permute(2, 0, 3, 1, 4)
    )
    logits = query @ key.transpose(-1, -2) * layer.head_dim**-0.5 + bias
    attention = logits.masked_fill(~same, float("-inf")).softmax(-1)
    out = (attention @ value).transpose(1, 2).reshape(padded.shape)
    return layer.proj(out[:, :height, :width])


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (8, 8), (5, 9), (3, 13), (10, 2)])
def test_equals_masked_dense_attention(size, shifted):
    torch.manual_seed(0)
    layer = ShiftedWindowAttention(16, 2, window_size=4, shifted=shifted).double()
    torch.nn.init.normal_(layer.relative_position_bias_table)
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense_reference(layer, x), rtol=1e-9, atol=1e-9)


def test_mask_holds_against_large_logits():
    torch.manual_seed(0)
    layer = ShiftedWindowAttention(16, 2, window_size=4, shifted=True).double()
    torch.nn.init.normal_(layer.qkv.weight, std=10)
    x = torch.randn(2, 8, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense_reference(layer, x))


def test_masks_are_cached_by_size_and_fake_ones_are_not():
    cached_shifted_window_mask.cache_clear()
    layer = ShiftedWindowAttention(8, 1, window_size=4, shifted=True)
    x = torch.randn(1, 8, 12, 8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(x))
    assert cached_shifted_window_mask.cache_info().currsize == 0
    with torch.inference_mode():
        expected = layer(x)
    output = layer(x)
    output.sum().backward()
    layer(x[:, :7])
    layer(x[:, :, :6])
    torch.testing.assert_close(output, expected)
    info = cached_shifted_window_mask.cache_info()
    assert (info.misses, info.hits) == (2, 2)


@needs_pytorch("2.7", "a graph for open sizes")
def test_graph_holds_for_any_size():
    """Whether or not one window covers the map."""
    torch.manual_seed(0)
    layer = ShiftedWindowAttention(8, 2, window_size=4, shifted=True).eval()
    side = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        example = (torch.randn(2, 9, 14, 8),)
        program = torch.export.export(layer, example, dynamic_shapes=({0: side, 1: side, 2: side},))
        graph = program.module(check_guards=False)
        for size in ((3, 8, 8), (2, 4, 13), (2, 2, 3), (2, 11, 4)):
            x = torch.randn(*size, 8)
            torch.testing.assert_close(graph(x), layer(x))
