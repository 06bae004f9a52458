import math
import random

import pytest
import torch

from slide_mm.ops import (
    BACKENDS,
    chunked,
    cpu_kernel,
    slide_attention,
    slide_attention_qkvpacked,
    slide_attention_weights,
)
from slide_mm.ops.reference import definition

PORTABLE = [backend for backend in BACKENDS if backend != "compiled"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
GRADIENT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def backends(dtype):
    """Those that this machine has for a dtype."""
    return BACKENDS if dtype == torch.float32 and cpu_kernel.is_available() else PORTABLE


def make_inputs(
    batch, height, width, num_heads, head_dim, kernel_size, dtype=torch.float64, contiguous=True
):
    """Random query, key, value, kernel, bias, position_bias; q, k, v views of one tensor if not
    contiguous, as the layer makes them."""
    taps = kernel_size**2
    shape = (batch, height, width, num_heads, head_dim)
    if contiguous:
        query, key, value = torch.randn(3, *shape, dtype=dtype)
    else:
        qkv = torch.randn(batch, width, height, 3, num_heads, head_dim, dtype=dtype)
        query, key, value = qkv.transpose(1, 2).unbind(-3)
    kernel = torch.eye(taps, dtype=dtype).view(taps, kernel_size, kernel_size)
    kernel = kernel + 0.3 * torch.randn(head_dim, taps, kernel_size, kernel_size, dtype=dtype)
    bias = torch.randn(head_dim, taps, dtype=dtype)
    position_bias = torch.randn(num_heads, taps, dtype=dtype)
    return query, key, value, kernel, bias, position_bias


def random_shape(rng):
    """(batch, height, width, num_heads, head_dim, kernel_size) anywhere in the supported range."""
    return (
        rng.randint(1, 2),
        rng.randint(1, 40),
        rng.randint(1, 40),
        rng.randint(1, 8),
        rng.randint(8, 64),
        rng.choice((3, 5)),
    )


def relative_error(actual, expected):
    """Largest difference relative to the largest expected value, at least 1."""
    if actual.numel() == 0:
        return 0.0
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def forward_and_gradients(function, inputs, **options):
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    out = function(*inputs, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), *torch.autograd.grad(out, [x for x in inputs if x is not None], weight)


@pytest.mark.parametrize("seed", range(12))
def test_backends_equal_the_judge_on_random_shapes(seed, monkeypatch):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    inputs = make_inputs(*random_shape(rng), contiguous=rng.random() < 0.5)
    with_bias, with_position, scale = rng.choice([(1, 1, None), (0, 1, None), (1, 0, 0.3)])
    inputs = [
        *inputs[:4],
        inputs[4] if with_bias else None,
        inputs[5] if with_position else None,
    ]
    monkeypatch.setattr(chunked, "_CPU_CHUNK", rng.choice((10 << 10, 640 << 10, 5 << 20)))
    torch.set_num_threads(1)  # the judge's tensors are tiny
    out, *gradients = forward_and_gradients(definition, inputs, scale=scale)
    for dtype, tolerance in TOLERANCE.items():
        cast = [None if x is None else x.to(dtype) for x in inputs]
        for backend in backends(dtype):
            for threads in (1, 4):
                torch.set_num_threads(threads)
                results = forward_and_gradients(slide_attention, cast, scale=scale, backend=backend)
                assert all(x.dtype == dtype for x in results)
                assert relative_error(results[0].double(), out) < tolerance, (backend, dtype)
                for actual, expected in zip(results[1:], gradients, strict=True):
                    difference = torch.linalg.vector_norm(actual - expected)
                    allowed = GRADIENT_TOLERANCE[dtype] * torch.linalg.vector_norm(expected)
                    assert difference <= allowed, (backend, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 4])
def test_repeated_runs_are_identical(backend, threads):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    inputs = make_inputs(2, 33, 41, 3, 16, 3, dtype=torch.float32, contiguous=False)
    if backend not in backends(torch.float32):
        pytest.skip(cpu_kernel.unavailable_reason())
    first, *others = (
        forward_and_gradients(slide_attention, inputs, backend=backend) for _ in range(3)
    )
    for other in others:
        assert all(map(torch.equal, first, other))


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_equals_apart(backend):
    if backend not in backends(torch.float32):
        pytest.skip(cpu_kernel.unavailable_reason())
    torch.manual_seed(0)
    *inputs, kernel, bias, position_bias = make_inputs(2, 6, 9, 2, 20, 3, dtype=torch.float32)
    weights = kernel, bias, position_bias
    expected = forward_and_gradients(slide_attention, (*inputs, *weights), backend=backend)
    out, qkv_grad, *weight_grads = forward_and_gradients(
        slide_attention_qkvpacked, (torch.stack(inputs, 3), *weights), backend=backend
    )
    for actual, other in zip((out, *qkv_grad.unbind(3), *weight_grads), expected, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", PORTABLE)
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_gradcheck(backend, kernel_size):
    torch.manual_seed(0)
    inputs = make_inputs(2, 3, 4, 2, 3, kernel_size, contiguous=False)
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(
        lambda *args: slide_attention(*args, backend=backend), inputs, fast_mode=kernel_size == 5
    )


@pytest.mark.parametrize("backend", PORTABLE)
def test_empty_batch(backend):
    inputs = [x.requires_grad_() for x in make_inputs(0, 5, 6, 2, 8, 3)]
    out = slide_attention(*inputs, backend=backend)
    assert out.shape == inputs[0].shape
    out.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in inputs)


@pytest.mark.parametrize("backend", PORTABLE)
def test_bf16_autocast_is_within_bf16_rounding(backend):
    torch.manual_seed(0)
    inputs = make_inputs(1, 12, 13, 2, 32, 3, dtype=torch.float32)
    query, key, value = (x.bfloat16() for x in inputs[:3])
    with torch.autocast("cpu", torch.bfloat16):
        out = slide_attention(query, key, value, *inputs[3:], backend=backend)
    assert out.dtype == torch.bfloat16
    # A logit is a sum of head_dim * K*K products rounded to 2**-9, and so is an output.
    expected = definition(query, key, value, *inputs[3:])
    rms = (out.double() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    assert rms < 2**-6
    assert relative_error(out.double(), expected) < 2**-4


def test_weights_sum_to_one_and_dropout_keeps_the_mean():
    torch.manual_seed(0)
    query, key, value, kernel, bias, position_bias = make_inputs(1, 9, 8, 2, 8, 3)
    weights = slide_attention_weights(query, key, kernel, bias, position_bias)
    assert weights.shape == (1, 9, 8, 2, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    plain = slide_attention(query, key, value, kernel, bias, position_bias)
    dropped = torch.stack(
        [
            slide_attention(query, key, value, kernel, bias, position_bias, dropout_p=0.5)
            for _ in range(400)
        ]
    )
    assert not torch.equal(dropped[0], plain)
    standard_error = dropped.std(0) / 400**0.5
    assert ((dropped.mean(0) - plain).abs() < 6 * standard_error).all()


def test_plain_shift_kernel_is_local_attention():
    """With the identity kernel an inner pixel attends to its nine neighbours and nothing else."""
    torch.manual_seed(0)
    query, key, value, *_ = make_inputs(1, 5, 5, 1, 8, 3)
    kernel = torch.eye(9, dtype=torch.float64).view(9, 3, 3).expand(8, 9, 3, 3)
    out = slide_attention(query, key, value, kernel)
    keys, values = key[0, 1:4, 1:4, 0].reshape(9, 8), value[0, 1:4, 1:4, 0].reshape(9, 8)
    expected = (keys @ query[0, 2, 2, 0] * 8**-0.5).softmax(0) @ values
    torch.testing.assert_close(out[0, 2, 2, 0], expected)


WRONG_INPUTS = {
    "query has shape (1, 4, 4, 16)": {"query": torch.zeros(1, 4, 4, 16)},
    "key has shape (1, 4, 5, 2, 8)": {"key": torch.zeros(1, 4, 5, 2, 8)},
    "value has shape (1, 4, 4, 1, 8)": {"value": torch.zeros(1, 4, 4, 1, 8)},
    "kernel has shape (4, 9, 3, 3)": {"kernel": torch.zeros(4, 9, 3, 3)},
    "kernel has shape (8, 9, 5, 5)": {"kernel": torch.zeros(8, 9, 5, 5)},
    "kernel has K = 4": {"kernel": torch.zeros(8, 16, 4, 4)},
    "kernel has K = 0": {"kernel": torch.zeros(8, 0, 0, 0)},
    "kernel has shape (3,)": {"kernel": torch.zeros(3)},
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
    **{f"scale is {scale!r}": {"scale": scale} for scale in (math.nan, math.inf, "a", [1])},
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_may_be_more_accurate_than_tokens(backend):
    """As they are under autocast."""
    query, key, value, *weights = make_inputs(1, 4, 5, 2, 8, 3)
    expected = slide_attention(query, key, value, *weights, backend="tap")
    if backend == "compiled":  # It needs float32 throughout.
        return
    output = slide_attention(query, key, value, *(x.double() for x in weights), backend=backend)
    assert output.dtype == query.dtype
    torch.testing.assert_close(output, expected)


def test_packed_refuses_another_shape():
    with pytest.raises(ValueError, match=r"qkv has shape \(1, 4, 4, 2, 2, 8\): give"):
        slide_attention_qkvpacked(torch.zeros(1, 4, 4, 2, 2, 8), torch.zeros(8, 9, 3, 3))


def test_tap_form_can_be_vmapped():
    query, key, value, kernel, *_ = make_inputs(3, 4, 5, 2, 8, 3)
    mapped = torch.vmap(lambda *x: slide_attention(*x, kernel, backend="tap"))
    tokens = [x[:, None] for x in (query, key, value)]
    expected = slide_attention(query, key, value, kernel, backend="tap")
    torch.testing.assert_close(mapped(*tokens)[:, 0], expected)
