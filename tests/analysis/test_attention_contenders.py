import pytest
import torch

from slide_mm.analysis.attention_contenders import (
    FLEX,
    SLIDE,
    WINDOW,
    Shape,
    list_contenders,
    make_contender,
    make_inputs,
    parse_shape,
)
from slide_mm.layers import ShiftedWindowAttention
from tests.needs import needs_pytorch

CPU = torch.device("cpu")


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return make_inputs(Shape(2, 16, 19, 2, 8), CPU)


@pytest.mark.parametrize("name", [x for x in list_contenders(CPU) if x in SLIDE])
def test_forms_agree_in_output_and_gradients(inputs, name):
    trained = [x for x in inputs[:-1] if x.requires_grad]
    results = []
    for form in (name, "tap"):
        output = make_contender(form, inputs)()
        weight = torch.linspace(-1, 1, output.numel()).view_as(output)
        results.append((output, *torch.autograd.grad(output, trained, weight)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_window_attention_is_that_of_the_layer(inputs):
    x = torch.randn(2, 16, 19, 16)
    layer = ShiftedWindowAttention(16, 2, window_size=7, shifted=True)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.eye(16).repeat(3, 1))
        layer.qkv.bias.zero_()
        layer.proj.weight.copy_(torch.eye(16))
        layer.proj.bias.zero_()
        layer.relative_position_bias_table.copy_(inputs.window_bias)
    qkv = x.unflatten(-1, (2, 8)).unsqueeze(3).expand(-1, -1, -1, 3, -1, -1)
    output = make_contender(WINDOW, inputs._replace(qkv=qkv))()
    torch.testing.assert_close(output.flatten(3), layer(x))


@needs_pytorch("2.5", "flex attention")
@pytest.mark.slow
def test_flex_attention_is_plain_local_attention_inside_the_image(inputs):
    plain = inputs._replace(
        deformed_kernel=torch.zeros_like(inputs.deformed_kernel),
        bias=torch.zeros_like(inputs.bias),
        position_bias=torch.zeros_like(inputs.position_bias),
    )
    with torch.no_grad():
        output, expected = (make_contender(name, plain)() for name in (FLEX, "tap"))
    torch.testing.assert_close(output[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1])


def test_shapes_by_name_and_by_size():
    named = {"A": Shape(1, 2, 3, 4, 5)}
    assert parse_shape("A", named) == named["A"]
    assert parse_shape("2x20x30x4x8", named) == Shape(2, 20, 30, 4, 8)
    for text in ("D", "1x2x3x4", "1x2x3x4x0", "1x2x3x4xd"):
        with pytest.raises(ValueError, match=f"shape '{text}': give one of A, or BxHxW"):
            parse_shape(text, named)
