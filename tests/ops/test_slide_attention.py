import math
import random

import pytest
import torch

from slide_mm.ops import (
    chunked,
    slide_attention,
    slide_attention_qkvpacked,
    slide_attention_weights,
)
from slide_mm.ops.reference import definition, published
from tests.ops.inputs import (
    DEVICES,
    OPERATORS,
    able,
    each_backend,
    forward_and_gradients,
    make_inputs,
    relative_error,
)

# Of the output and of the gradients.
TOLERANCES = {torch.float64: (1e-10, 1e-9), torch.float32: (2e-5, 1e-4)}


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def draw_inputs(rng):
    """Query, key, value and weights of any shape and layout, as a layer or a stranger has them."""
    kernel_size = rng.choice((3, 3, 5, 7))
    side = 100 // kernel_size
    shape = (rng.randint(1, 2), rng.randint(1, side), rng.randint(1, 2 * side), rng.randint(1, 3))
    head_dim = rng.choice((8, 20, 32, 33, rng.randint(1, 64)))
    qkv, *weights = make_inputs(*shape, head_dim, kernel_size, dtype=torch.float64)
    qkv = rng.choice(
        (
            qkv,
            qkv.transpose(1, 2).contiguous().transpose(1, 2),
            qkv.permute(0, 3, 4, 5, 1, 2).contiguous().permute(0, 4, 5, 1, 2, 3),
        )
    )
    kernel, bias, position_bias = weights
    bias = rng.choice((None, bias, bias))
    position_bias = rng.choice((None, position_bias, position_bias))
    return [*qkv.unbind(3), kernel, bias, position_bias]


@pytest.mark.parametrize("seed", range(16))
def test_backends_equal_the_definition(seed, monkeypatch):
    rng = random.Random(seed)
    inputs, scale = draw_inputs(rng), rng.choice((None, 0.3))
    kernel_size = inputs[3].shape[-1]
    monkeypatch.setattr(chunked, "_CPU_CHUNK", rng.choice((10 << 10, 640 << 10, 5 << 20)))
    torch.set_num_threads(1)  # The definition's tensors are tiny.
    expected = forward_and_gradients(definition, inputs, scale=scale)
    for dtype, (tolerance, gradient_tolerance) in TOLERANCES.items():
        for device in DEVICES:
            cast = [
                None if x is None else x.detach().to(device, dtype).requires_grad_() for x in inputs
            ]
            for backend in able(dtype, device, kernel_size):
                torch.set_num_threads(rng.choice((1, 4)))
                results = forward_and_gradients(slide_attention, cast, scale=scale, backend=backend)
                assert all(x.dtype == dtype for x in results)
                output, *gradients = map(relative_error, results, expected)
                assert output < tolerance, (backend, dtype)
                assert all(x < gradient_tolerance for x in gradients), (backend, dtype)


def test_published_form_equals_the_definition():
    qkv, kernel, bias, position_bias = make_inputs(2, 6, 7, 3, 8, 5, dtype=torch.float64)
    shift = torch.eye(25, dtype=torch.float64).view(25, 5, 5).expand_as(kernel)
    output = published(qkv, shift, kernel - shift, bias, position_bias)
    torch.testing.assert_close(output, definition(*qkv.unbind(3), kernel, bias, position_bias))


@each_backend
def test_results_depend_on_no_other_run(backend):
    """Nor, for the compiled kernel, on the number of threads."""
    results = {}
    for threads in (1, 4, 2, 4):
        torch.set_num_threads(threads)
        inputs = make_inputs(1, 40, 70, 2, 16)
        result = forward_and_gradients(slide_attention_qkvpacked, inputs, backend=backend)
        key = None if backend == "compiled" else threads
        assert all(map(torch.equal, results.setdefault(key, result), result))


@each_backend
def test_packed_equals_apart(backend):
    qkv, *weights = make_inputs(2, 6, 9, 2, 20)
    output, qkv_grad, *weight_grads = forward_and_gradients(
        slide_attention_qkvpacked, (qkv, *weights), backend=backend
    )
    apart = [x.detach().requires_grad_() for x in qkv.unbind(3)]
    expected = forward_and_gradients(slide_attention, (*apart, *weights), backend=backend)
    results = (output, *qkv_grad.unbind(3), *weight_grads)
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", able(torch.float64))
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_gradcheck(backend, kernel_size):
    inputs = make_inputs(2, 3, 4, 2, 3, kernel_size, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *args: slide_attention_qkvpacked(*args, backend=backend), inputs, fast_mode=True
    )


@pytest.mark.parametrize(
    ("backend", "shape"),
    [
        (backend, shape)
        for shape in ((0, 4, 4), (2, 0, 4), (2, 4, 0))
        # PyTorch's unfold and convolutions take no empty images.
        for backend in (OPERATORS if shape[0] else able(torch.float32))
    ],
)
def test_nothing_in_gives_nothing_out(backend, shape):
    inputs = make_inputs(*shape)
    output, *gradients = forward_and_gradients(slide_attention_qkvpacked, inputs, backend=backend)
    assert output.shape == (*shape, 2, 8)
    assert all(map(torch.equal, gradients, map(torch.zeros_like, inputs)))


@pytest.mark.parametrize("backend", able(torch.bfloat16))
def test_bf16_autocast_is_within_bf16_rounding(backend):
    qkv, *weights = make_inputs(1, 12, 13, 2, 32)
    qkv = qkv.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        output = slide_attention_qkvpacked(qkv, *weights, backend=backend)
    assert output.dtype == torch.bfloat16
    # A logit is a sum of head_dim * K*K products rounded to 2**-9, and so is an output.
    expected = definition(*qkv.unbind(3), *weights)
    assert relative_error(output, expected) < 2**-6
    largest = (output.double() - expected).abs().max() / expected.abs().max()
    assert largest < 2**-4


def test_weights_sum_to_one_and_dropout_keeps_the_mean():
    qkv, *weights = (x.detach() for x in make_inputs(1, 9, 8, dtype=torch.float64))
    attention = slide_attention_weights(*qkv.unbind(3)[:2], *weights)
    assert attention.shape == (1, 9, 8, 2, 9)
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    plain = slide_attention_qkvpacked(qkv, *weights)
    dropped = torch.stack(
        [slide_attention_qkvpacked(qkv, *weights, dropout_p=0.5) for _ in range(400)]
    )
    assert not torch.equal(dropped[0], plain)
    standard_error = dropped.std(0) / 400**0.5
    assert ((dropped.mean(0) - plain).abs() < 6 * standard_error).all()


def test_plain_shift_kernel_is_local_attention():
    """With the identity kernel an inner pixel attends to its nine neighbours and nothing else."""
    query, key, value = make_inputs(1, 5, 5, 1, 8, dtype=torch.float64)[0].unbind(3)
    kernel = torch.eye(9, dtype=torch.float64).view(9, 3, 3).expand(8, 9, 3, 3)
    output = slide_attention(query, key, value, kernel)
    keys, values = key[0, 1:4, 1:4, 0].reshape(9, 8), value[0, 1:4, 1:4, 0].reshape(9, 8)
    expected = (keys @ query[0, 2, 2, 0] * 8**-0.5).softmax(0) @ values
    torch.testing.assert_close(output[0, 2, 2, 0], expected)


WRONG_INPUTS = {
    "query has shape (1, 4, 4, 16)": {"query": torch.zeros(1, 4, 4, 16)},
    "key has shape (1, 4, 5, 2, 8)": {"key": torch.zeros(1, 4, 5, 2, 8)},
    "value has shape (1, 4, 4, 1, 8)": {"value": torch.zeros(1, 4, 4, 1, 8)},
    "kernel has shape (4, 9, 3, 3)": {"kernel": torch.zeros(4, 9, 3, 3)},
    "kernel has shape (8, 9, 5, 5)": {"kernel": torch.zeros(8, 9, 5, 5)},
    "kernel has K = 4": {"kernel": torch.zeros(8, 16, 4, 4)},
    "kernel has K = 0": {"kernel": torch.zeros(8, 0, 0, 0)},
    "kernel has shape (3,)": {"kernel": torch.zeros(3)},
    "kernel has K = 0: ": {"kernel": torch.zeros(())},
    "scale is tensor([[1., 0.], [0., 1.]])": {"scale": torch.eye(2)},
    "kernel is on meta": {"kernel": torch.zeros(8, 9, 3, 3, device="meta")},
    "bias is on meta": {"bias": torch.zeros(8, 9, device="meta")},
    "key is of torch.float32 on meta": {"key": torch.zeros(1, 4, 4, 2, 8, device="meta")},
    "key is of torch.float64 on cpu": {"key": torch.zeros(1, 4, 4, 2, 8).double()},
    "query is of torch.int64: give float32": {"query": torch.zeros(1, 4, 4, 2, 8).long()},
    "value is of torch.complex64": {"value": torch.zeros(1, 4, 4, 2, 8).to(torch.complex64)},
    "kernel is of torch.uint8": {"kernel": torch.zeros(8, 9, 3, 3, dtype=torch.uint8)},
    "query is of type ndarray: give a tensor": {"query": torch.zeros(1, 4, 4, 2, 8).numpy()},
    "kernel is of type NoneType": {"kernel": None},
    "position_bias is of type float": {"position_bias": 0.5},
    **{
        f"scale is {scale!r}": {"scale": scale}
        for scale in (math.nan, math.inf, -math.inf, "a", [1])
    },
    **{f"dropout_p is {p}": {"dropout_p": p} for p in (math.nan, -0.1, 1.0, 2, None)},
    "bias has shape (9, 8)": {"bias": torch.zeros(9, 8)},
    "position_bias has shape (3, 9)": {"position_bias": torch.zeros(3, 9)},
    "backend is 'fast'": {"backend": "fast"},
    "backend 'compiled' needs float32": {
        "backend": "compiled",
        "kernel": torch.zeros(8, 9, 3, 3).half(),
    },
    "backend 'compiled' has no dropout": {"backend": "compiled", "dropout_p": 0.1},
    "backend 'chunked' has no dropout": {"backend": "chunked", "dropout_p": 0.1},
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_wrong_inputs_give_one_line_with_the_value(message):
    tokens = torch.zeros(1, 4, 4, 2, 8)
    arguments = {"query": tokens, "key": tokens, "value": tokens, "kernel": torch.zeros(8, 9, 3, 3)}
    slide_attention(**arguments)
    with pytest.raises(ValueError, match=r"give|choose") as caught:
        slide_attention(**{**arguments, **WRONG_INPUTS[message]})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 4, 4, 0, 8), (1, 4, 4, 2, 0)])
def test_heads_and_channels_are_needed(shape):
    with pytest.raises(ValueError, match="heads and channels not 0"):
        slide_attention(*[torch.zeros(shape)] * 3, torch.zeros(shape[-1], 9, 3, 3))


@pytest.mark.parametrize("backend", able(torch.float64))
def test_weights_may_be_more_accurate_than_tokens(backend):
    """As they are under autocast."""
    qkv, *weights = make_inputs(dtype=torch.float64)
    qkv = qkv.float()
    expected = slide_attention_qkvpacked(qkv, *(x.float() for x in weights), backend="tap")
    output = slide_attention_qkvpacked(qkv, *weights, backend=backend)
    assert output.dtype == qkv.dtype
    torch.testing.assert_close(output, expected)


def test_packed_refuses_another_shape():
    with pytest.raises(ValueError, match=r"qkv has shape \(1, 4, 4, 2, 2, 8\): give"):
        slide_attention_qkvpacked(torch.zeros(1, 4, 4, 2, 2, 8), torch.zeros(8, 9, 3, 3))


def test_tap_form_can_be_vmapped():
    qkv, *weights = make_inputs(3)
    mapped = torch.vmap(lambda x: slide_attention_qkvpacked(x, *weights, backend="tap"))
    expected = slide_attention_qkvpacked(qkv, *weights, backend="tap")
    torch.testing.assert_close(mapped(qkv[:, None])[:, 0], expected)
