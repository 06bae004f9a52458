import random
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slide_mm.ops import neighbourhood_tiles
from slide_mm.ops.neighbourhood_attention import (
    attend_in_tiles,
    definition,
    neighbourhood_attention,
)
from tests.needs import needs_pytorch
from tests.ops.inputs import DEVICES, forward_and_gradients, relative_error

FORMS = {
    "bands": neighbourhood_attention,
    "tiles": lambda qkv, bias, dilation=1, scale=None: attend_in_tiles(
        qkv, bias, dilation, scale or qkv.shape[-1] ** -0.5
    ),
}
each_form = pytest.mark.parametrize("form", FORMS)


def make_inputs(
    batch=1, height=9, width=10, num_heads=2, head_dim=4, kernel_size=5, dtype=torch.float64
):
    """qkv (B, H, W, 3, num_heads, head_dim) and a position bias, with gradients."""
    torch.manual_seed(0)
    side = 2 * kernel_size - 1
    qkv = torch.randn(batch, height, width, 3, num_heads, head_dim, dtype=dtype)
    return [qkv.requires_grad_(), torch.randn(num_heads, side, side, dtype=dtype).requires_grad_()]


def draw(rng, most):
    """Inputs of any size and layout, and a dilation, whose product with K is at most so much."""
    kernel_size = rng.choice((3, 5, 7, 9, 11))
    dilation = rng.randint(1, min(8, most // kernel_size))
    least = kernel_size * dilation
    size = rng.randint(least, least + 9), rng.randint(least, least + 9)
    inputs = make_inputs(
        rng.randint(1, 3), *size, rng.randint(1, 3), rng.randint(1, 9), kernel_size
    )
    if rng.random() < 0.5:
        inputs[0] = inputs[0].detach().permute(0, 3, 4, 1, 2, 5).contiguous()
        inputs[0] = inputs[0].permute(0, 3, 4, 1, 2, 5).requires_grad_()
    return inputs, dilation


@pytest.mark.parametrize(
    ("seed", "most"),
    [*((seed, 24) for seed in range(16)), pytest.param(16, 88, marks=pytest.mark.slow)],
)
def test_equals_the_definition(seed, most, monkeypatch):
    """Whatever the tiles are; in float64 and, less closely, in float32."""
    rng = random.Random(seed)
    for _ in range(4 if most > 24 else 1):
        inputs, dilation = draw(rng, most)
        options = {"dilation": dilation, "scale": rng.choice((None, 0.3))}
        monkeypatch.setattr(
            neighbourhood_tiles, "_CPU_TILE", (rng.randint(1, 12), rng.randint(1, 12))
        )
        monkeypatch.setattr(neighbourhood_tiles, "_CPU_CHUNK", rng.choice((1, 4 << 20)))
        expected = forward_and_gradients(definition, inputs, **options)
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
            for device in DEVICES:
                cast = [x.detach().to(device, dtype).requires_grad_() for x in inputs]
                for form, function in FORMS.items():
                    results = forward_and_gradients(function, cast, **options)
                    assert all(x.dtype == dtype for x in results)
                    errors = list(map(relative_error, results, expected))
                    assert all(error < tolerance for error in errors), (form, errors)


@each_form
def test_where_the_kernel_covers_the_map_it_is_attention_to_all_of_it(form):
    """With the bias of the offset from query to key, not the other way round."""
    qkv, bias = make_inputs(2, 5, 5)
    position = torch.stack(torch.meshgrid(*[torch.arange(5)] * 2, indexing="ij"), -1).view(25, 2)
    rows, columns = (position[None] - position[:, None]).unbind(-1)
    query, key, value = qkv.flatten(1, 2).transpose(1, 3).unbind(2)
    logits = 0.5 * query @ key.mT + bias[:, rows + 4, columns + 4]
    expected = (logits.softmax(-1) @ value).transpose(1, 2).view(2, 5, 5, 2, 4)
    torch.testing.assert_close(FORMS[form](qkv, bias), expected)


@each_form
def test_dilation_looks_at_every_second_token(form):
    """As without it on the tokens of one parity of rows and columns."""
    qkv, bias = make_inputs(2, 11, 14)
    output = FORMS[form](qkv, bias, dilation=2)
    for row in (0, 1):
        for column in (0, 1):
            part = FORMS[form](qkv[:, row::2, column::2], bias)
            torch.testing.assert_close(output[:, row::2, column::2], part)


@each_form
@pytest.mark.parametrize("dilation", [1, 2])
def test_gradcheck(form, dilation):
    inputs = make_inputs(2, 7, 6, 2, 3, kernel_size=3)
    function = partial(FORMS[form], dilation=dilation)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_keeps_the_inputs_alone():
    kept = {}

    def remember(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    inputs = make_inputs()
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        neighbourhood_attention(*inputs)
    assert sum(kept.values()) == sum(x.numel() for x in inputs)


def test_nothing_in_gives_nothing_out():
    inputs = make_inputs(batch=0)
    output, *gradients = forward_and_gradients(neighbourhood_attention, inputs)
    assert output.shape == (0, 9, 10, 2, 4)
    assert all(map(torch.equal, gradients, map(torch.zeros_like, inputs)))


def test_autocast_changes_the_type_of_the_output_alone():
    qkv, bias = make_inputs(dtype=torch.float32)
    low = qkv.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        results = forward_and_gradients(neighbourhood_attention, (low, bias))
    assert [x.dtype for x in results] == [torch.bfloat16, torch.bfloat16, torch.float32]
    expected = forward_and_gradients(definition, (low, bias))
    assert all(error < 2**-7 for error in map(relative_error, results, expected))


def test_dropout_keeps_the_mean():
    qkv, bias = (x.detach() for x in make_inputs())
    plain = neighbourhood_attention(qkv, bias)
    dropped = torch.stack([neighbourhood_attention(qkv, bias, dropout_p=0.5) for _ in range(200)])
    assert not torch.equal(dropped[0], plain)
    assert ((dropped.mean(0) - plain).abs() < 6 * dropped.std(0) / 200**0.5).all()


@needs_pytorch("2.5", "opcheck")
def test_registered_as_pytorch_expects():
    torch.library.opcheck(torch.ops.slide_mm.neighbourhood_attention, (*make_inputs(), 1, 0.3))


def test_compiles_without_graph_breaks():
    inputs = make_inputs()
    compiled = torch.compile(neighbourhood_attention, fullgraph=True, backend="aot_eager")
    expected = forward_and_gradients(neighbourhood_attention, inputs)
    assert all(map(torch.equal, forward_and_gradients(compiled, inputs), expected))


def test_pytorch_counts_its_operations():
    inputs = make_inputs()
    with FlopCounterMode(display=False) as counter:
        output = neighbourhood_attention(*inputs)
    forward = 2 * 2 * output.numel() * 25
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2.5 * forward


def test_refuses_double_backward():
    inputs = make_inputs()
    output = neighbourhood_attention(*inputs)
    (gradient,) = torch.autograd.grad(output.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


WRONG_INPUTS = {
    "qkv has shape (1, 9, 10, 2, 2, 4)": {"qkv": torch.zeros(1, 9, 10, 2, 2, 4)},
    "qkv is of torch.int64": {"qkv": torch.zeros(1, 9, 10, 3, 2, 4).long()},
    "qkv is of 4 x 10 tokens: give at least 5 x 5": {"qkv": torch.zeros(1, 4, 10, 3, 2, 4)},
    "qkv is of 9 x 10 tokens: give at least 10 x 10": {"dilation": 2},
    "position_bias has shape (1, 9, 9)": {"position_bias": torch.zeros(1, 9, 9)},
    "position_bias has shape (2, 9, 5)": {"position_bias": torch.zeros(2, 9, 5)},
    "position_bias has shape (2, 7, 7)": {"position_bias": torch.zeros(2, 7, 7)},
    "position_bias has shape ()": {"position_bias": torch.zeros(())},
    "position_bias is on meta": {"position_bias": torch.zeros(2, 9, 9, device="meta")},
    "position_bias is of type float": {"position_bias": 0.5},
    "dilation is 0": {"dilation": 0},
    "dilation is 1.5": {"dilation": 1.5},
    "scale is inf": {"scale": float("inf")},
    "dropout_p is 1": {"dropout_p": 1},
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_inputs_give_one_line_with_the_value(message):
    arguments = {"qkv": torch.zeros(1, 9, 10, 3, 2, 4), "position_bias": torch.zeros(2, 9, 9)}
    neighbourhood_attention(**arguments)
    with pytest.raises(ValueError, match="give") as caught:
        neighbourhood_attention(**{**arguments, **WRONG_INPUTS[message]})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
