import random

import pytest
import torch

from slide_mm.layers import CrossShapedAttention
from tests.needs import needs_pytorch


def attend_in_stripe(layer, query, key, value, lepe):
    """Heads of one stripe (h, w, heads, head_dim), token by token, and its convolution."""
    height, width = query.shape[:2]
    out = torch.zeros_like(query)
    kernel = lepe.weight.view(*query.shape[2:], 3, 3)
    bias = lepe.bias.view(query.shape[2:])
    for i in range(height):
        for j in range(width):
            logits = (query[i, j] * key).sum(-1) * layer.head_dim**-0.5
            weights = logits.flatten(0, 1).softmax(0)
            out[i, j] = (weights[..., None] * value.flatten(0, 1)).sum(0) + bias
            for row in range(3):
                for column in range(3):
                    y, x = i + row - 1, j + column - 1
                    if 0 <= y < height and 0 <= x < width:
                        out[i, j] += kernel[..., row, column] * value[y, x]
    return out


def slow_reference(layer, tokens):
    """Stripe after stripe, columns for the first heads and rows for the others."""
    width = layer.stripe_width
    outputs = []
    for x in tokens:
        height, heads = x.shape[0], (layer.num_heads, layer.head_dim)
        qkv = [y.reshape(*x.shape[:2], *heads) for y in layer.qkv(x).chunk(3, dim=-1)]
        if width is None:
            out = attend_in_stripe(layer, *qkv, layer.lepe[0])
        else:
            half = layer.num_heads // 2
            out = torch.zeros_like(qkv[0])
            for branch, lepe in enumerate(layer.lepe):
                some = slice(branch * half, (branch + 1) * half)
                # Rows become columns, and the other way round.
                maps = [y[:, :, some].transpose(0, 1 - branch) for y in qkv]
                across = maps[0].shape[0]
                missing = -across % width
                padded = [y.new_zeros(across + missing, *y.shape[1:]) for y in maps]
                first = missing // 2
                for y, filled in zip(maps, padded, strict=True):
                    filled[first : first + across] = y
                result = torch.zeros_like(padded[0])
                for start in range(0, len(result), width):
                    stripe = [y[start : start + width].transpose(0, 1 - branch) for y in padded]
                    result[start : start + width] = attend_in_stripe(
                        layer, *stripe, lepe
                    ).transpose(0, 1 - branch)
                out[:, :, some] = result[first : first + across].transpose(0, 1 - branch)
        assert out.shape[0] == height
        outputs.append(layer.proj(out.flatten(2)))
    return torch.stack(outputs)


def make_layer(dims=8, num_heads=4, stripe_width=2):
    layer = CrossShapedAttention(dims, num_heads, stripe_width).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_equals_attention_stripe_by_stripe(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    stripe_width = (None, 1, 2, 3, 7)[seed % 5]
    num_heads = 2 * rng.randint(1, 2)
    layer = make_layer(num_heads * rng.randint(1, 3), num_heads, stripe_width)
    size = rng.randint(1, 9), rng.randint(1, 9)
    x = torch.randn(rng.randint(1, 2), *size, layer.qkv.in_features, dtype=torch.float64)
    expected = slow_reference(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    single = layer.float()(x.float()).double()
    torch.testing.assert_close(single, expected, rtol=2e-5, atol=2e-5 * expected.abs().max())


@pytest.mark.parametrize("stripe_width", [None, 2])
def test_gradients_are_those_of_the_function(stripe_width):
    torch.manual_seed(0)
    layer = make_layer(4, 2, stripe_width)
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_stripes_as_wide_as_the_map_see_all_of_it():
    """As without stripes, but for the padding, of which there is none."""
    torch.manual_seed(0)
    striped, whole = make_layer(8, 4, 6), make_layer(8, 4, None)
    weights = striped.state_dict()
    for kind in ("weight", "bias"):
        joined = [weights.pop(f"lepe.{branch}.{kind}") for branch in range(2)]
        weights[f"lepe.0.{kind}"] = torch.cat(joined)
    whole.load_state_dict(weights)
    x = torch.randn(2, 6, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(striped(x), whole(x))


def test_an_empty_batch_stays_empty():
    assert make_layer()(torch.zeros(0, 5, 4, 8).double()).shape == (0, 5, 4, 8)


def test_dropouts_work_in_training_only():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 8)
    for options in ({"attn_drop": 0.5}, {"proj_drop": 0.5}):
        layer = CrossShapedAttention(8, 2, **options)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


def test_stripes_need_an_even_number_of_heads():
    with pytest.raises(ValueError, match="num_heads is 3: give an even number"):
        CrossShapedAttention(9, 3)
    CrossShapedAttention(9, 3, stripe_width=None)
    with pytest.raises(ValueError, match="stripe_width is 0: give a whole number"):
        CrossShapedAttention(8, 2, stripe_width=0)


@needs_pytorch("2.7", "a graph for open sizes")
@pytest.mark.parametrize("stripe_width", [None, 3])
def test_graph_holds_for_any_size(stripe_width):
    torch.manual_seed(0)
    layer = make_layer(8, 2, stripe_width)
    side = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        example = (torch.randn(2, 10, 14, 8).double(),)
        program = torch.export.export(layer, example, dynamic_shapes=({0: side, 1: side, 2: side},))
        graph = program.module(check_guards=False)
        for size in ((3, 8, 9), (2, 4, 13), (2, 5, 4)):
            x = torch.randn(*size, 8).double()
            torch.testing.assert_close(graph(x), layer(x))
