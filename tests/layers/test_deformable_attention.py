import math
import random

import pytest
import torch
from torch.nn import functional as F

from slide_mm.layers import DeformableAttention, deformable_attention
from tests.needs import needs_pytorch


def interpolate(image, y, x):
    """Value (C,) of an image (C, H, W) at a place in tokens, with zeros outside."""
    height, width = image.shape[1:]
    first = math.floor(y), math.floor(x)
    value = image.new_zeros(len(image))
    for row in (first[0], first[0] + 1):
        for column in (first[1], first[1] + 1):
            if 0 <= row < height and 0 <= column < width:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                value = value + weight * image[:, row, column]
    return value


def place_of(coordinate, side):
    """Tokens from the first one: -1 is the first token, 1 the last."""
    return (coordinate + 1) / 2 * (side - 1)


def find_point(layer, index, sides, offset):
    """Row and column, in [-1, 1], of a point of the grid that is moved by the network."""
    point = []
    for i, side, move in zip(index, sides, offset.tolist(), strict=True):
        if not layer.plus:
            point.append(2 * (i + 0.5) / side - 1 + 2 * math.tanh(move) / side)
        elif side == 1:
            point.append(1.0)
        else:
            point.append(min(max(2 * (i + 0.5) / (side - 1) - 1 + move, -1.0), 1.0))
    return point


def query_coordinate(layer, i, side):
    if layer.plus:
        return 2 * i / max(side - 1, 1) - 1
    return 2 * (i + 0.5) / side - 1


def slow_reference(layer, tokens):
    """Group after group, point after point, query after query."""
    outputs = []
    for x in tokens:
        height, width, channels = x.shape
        query = layer.q(x)
        points, sampled = [], []
        for channels_of_group in torch.arange(channels).chunk(layer.num_groups):
            image = query[..., channels_of_group].permute(2, 0, 1)
            offsets = layer.offset_conv(image[None])[0].permute(1, 2, 0)
            offsets = layer.offset_proj(F.gelu(layer.offset_norm(offsets)))
            sides = offsets.shape[:2]
            indices = [(i, j) for i in range(sides[0]) for j in range(sides[1])]
            points.append([find_point(layer, index, sides, offsets[index]) for index in indices])
            image = x[..., channels_of_group].permute(2, 0, 1)
            sampled.append(
                torch.stack(
                    [
                        interpolate(image, place_of(p[0], height), place_of(p[1], width))
                        for p in points[-1]
                    ]
                )
            )
        key, value = layer.kv(torch.cat(sampled, dim=-1)).chunk(2, dim=-1)
        heads = torch.arange(channels).chunk(layer.num_heads)
        out = torch.zeros_like(x)
        for h, channels_of_head in enumerate(heads):
            group = h // (layer.num_heads // layer.num_groups)
            table = layer.relative_position_bias_table[h : h + 1]
            side = table.shape[1]
            for i in range(height):
                for j in range(width):
                    u = query_coordinate(layer, i, height), query_coordinate(layer, j, width)
                    bias = [
                        interpolate(
                            table,
                            place_of((u[0] - p[0]) / 2, side),
                            place_of((u[1] - p[1]) / 2, side),
                        )
                        for p in points[group]
                    ]
                    logits = key[:, channels_of_head] @ query[i, j, channels_of_head]
                    weights = (logits * layer.head_dim**-0.5 + torch.cat(bias)).softmax(0)
                    out[i, j, channels_of_head] = weights @ value[:, channels_of_head]
        outputs.append(layer.proj(out))
    return torch.stack(outputs)


def make_layer(dims=8, num_heads=4, num_groups=2, **options):
    layer = DeformableAttention(dims, num_heads, num_groups, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_equals_attention_point_by_point(plus, seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    num_groups = rng.randint(1, 3)
    num_heads = num_groups * rng.randint(1, 2)
    options = {"stride": rng.choice((1, 2, 4)), "kernel_size": rng.choice((5, 9))} if plus else {}
    layer = make_layer(
        num_heads * rng.randint(1, 3), num_heads, num_groups, map_size=4, plus=plus, **options
    )
    size = rng.randint(1, 7), rng.randint(1, 7)
    x = torch.randn(rng.randint(1, 2), *size, layer.q.in_features, dtype=torch.float64)
    expected = slow_reference(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    single = layer.float()(x.float()).double()
    torch.testing.assert_close(single, expected, rtol=2e-5, atol=2e-5 * expected.abs().max())


@pytest.mark.parametrize("num_rows", [1, 3, 7])
def test_pieces_without_gradients_join_to_the_whole(num_rows, monkeypatch):
    torch.manual_seed(0)
    layer, seen = make_layer(plus=False), []
    x = torch.randn(2, 7, 5, 8, dtype=torch.float64)
    whole = layer(x)
    monkeypatch.setattr(deformable_attention, "_PIECE", num_rows * 2 * 4 * 35 * 5)
    attend = layer.attend
    monkeypatch.setattr(
        layer, "attend", lambda query, *others: seen.append(query) or attend(query, *others)
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(x), whole, rtol=1e-12, atol=1e-12)
    assert [query.shape[1] for query in seen[:-1]] == [num_rows] * (-(-7 // num_rows) - 1)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (3, 2), (8, 2)])
@torch.no_grad()
def test_tiny_maps_are_finite_and_equal(plus, size):
    """Where the authors' code divides by zero, and where one point is left of the grid."""
    torch.manual_seed(0)
    layer = make_layer(stride=8 if plus else 1, kernel_size=9, plus=plus)
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    assert layer(x).isfinite().all()
    torch.testing.assert_close(layer(x), slow_reference(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plus", [False, True])
def test_gradients_are_those_of_the_function(plus):
    torch.manual_seed(0)
    layer = make_layer(4, 2, 2, map_size=2, plus=plus)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_points_without_offsets_are_the_authors_grids():
    """A row of seven tokens: DAT's points lie between them, DAT++'s half a token further."""
    for plus, expected in ((False, [0.429, 5.571]), (True, [0.5, 6.0])):
        layer = make_layer(4, 1, 1, plus=plus)
        torch.nn.init.zeros_(layer.offset_proj.weight)
        points = layer.find_points(torch.randn(1, 7, 7, 4).double())
        places = place_of(points[0, :, 0, 0], 7).tolist()
        assert [places[0], places[-1]] == pytest.approx(expected, abs=1e-3)


def test_points_are_found_in_single_precision():
    layer = DeformableAttention(8, 2, kernel_size=3)
    with torch.autocast("cpu", torch.bfloat16):
        query = layer.q(torch.randn(1, 9, 9, 8))
        assert query.dtype == torch.bfloat16
        assert layer.find_points(query).dtype == torch.float32
        assert layer(torch.randn(1, 9, 9, 8)).isfinite().all()


def test_an_empty_batch_stays_empty():
    assert make_layer()(torch.zeros(0, 5, 4, 8).double()).shape == (0, 5, 4, 8)


def test_dropouts_work_in_training_only():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 8)
    for options in ({"attn_drop": 0.5}, {"proj_drop": 0.5}):
        layer = DeformableAttention(8, 2, **options)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


def test_tables_of_other_sizes_are_resized_as_pictures():
    layer = DeformableAttention(8, 2, map_size=12)
    table = torch.randn(2, 13, 13)
    resized = layer.resample("relative_position_bias_table", table)
    expected = F.interpolate(table[None], size=(23, 23), mode="bicubic")[0]
    torch.testing.assert_close(resized, expected)
    assert layer.resample("relative_position_bias_table", torch.randn(3, 13, 13)) is None
    assert layer.resample("q.weight", table) is None


def test_groups_divide_the_heads():
    with pytest.raises(ValueError, match="num_groups is 3: give a divisor of num_heads, 4"):
        DeformableAttention(8, 4, 3)


@needs_pytorch("2.7", "a graph for open sizes")
@pytest.mark.parametrize("plus", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_graph_holds_for_any_size(plus):
    torch.manual_seed(0)
    layer = make_layer(stride=2 if plus else 1, plus=plus)
    side = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        example = (torch.randn(2, 10, 14, 8).double(),)
        program = torch.export.export(layer, example, dynamic_shapes=({0: side, 1: side, 2: side},))
        graph = program.module(check_guards=False)
        for size in ((3, 8, 9), (2, 4, 13), (2, 5, 4)):
            x = torch.randn(*size, 8).double()
            torch.testing.assert_close(graph(x), layer(x))
