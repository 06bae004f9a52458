"""The fused kernels on a GPU."""

import random

import pytest
import torch

from slide_mm.ops import backends, gpu_kernel, slide_attention, slide_attention_qkvpacked
from tests.ops.inputs import forward_and_gradients, make_inputs, relative_error

pytestmark = pytest.mark.gpu

# Rounding to 2**-8 and 2**-11, and three products of tf32, in sums of products of four factors.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
each_type = pytest.mark.parametrize("dtype", TOLERANCES)


@pytest.fixture(autouse=True)
def fresh_memory_is_nan():
    reason = gpu_kernel.unavailable_reason(torch.cuda.current_device())
    if reason:
        pytest.skip(f"'triton' {reason}")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def to_gpu(inputs, dtype):
    return [x.detach().to("cuda", dtype).requires_grad_() for x in inputs]


def draw_inputs(rng, dtype):
    shape = (rng.randint(1, 3), rng.randint(1, 40), rng.randint(1, 70), rng.randint(1, 5))
    supported = [key for key in gpu_kernel._TILINGS if key[2] == dtype.itemsize]
    kernel_size, head_dim, _ = rng.choice(supported)
    qkv, *weights = to_gpu(make_inputs(*shape, head_dim, kernel_size), dtype)
    qkv = qkv.detach()
    if rng.random() < 0.3:
        qkv = qkv.permute(0, 3, 4, 5, 1, 2).contiguous().permute(0, 4, 5, 1, 2, 3)
    if rng.random() < 0.3:
        return slide_attention, [*(x.requires_grad_() for x in qkv.unbind(3)), *weights]
    return slide_attention_qkvpacked, [qkv.requires_grad_(), *weights]


@pytest.mark.parametrize("seed", range(12))
@each_type
def test_equals_the_form_by_tap_in_float64(dtype, seed):
    function, inputs = draw_inputs(random.Random(seed), dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = forward_and_gradients(function, exact, backend="tap")
    results = forward_and_gradients(function, inputs, backend="triton")
    assert all(x.dtype == dtype for x in results)
    errors = [relative_error(x, y.cpu()) for x, y in zip(results, expected, strict=True)]
    assert max(errors) < TOLERANCES[dtype], errors


@each_type
def test_auto_takes_it(dtype):
    inputs = to_gpu(make_inputs(head_dim=32), dtype)
    assert backends.choose("auto", inputs, 3, 0.0) == "triton"
    with torch.autocast("cuda", torch.float16):
        assert slide_attention_qkvpacked(*inputs).dtype == dtype


@each_type
def test_every_run_gives_the_same_numbers(dtype):
    inputs = to_gpu(make_inputs(4, 60, 70, 3, 32), dtype)
    runs = [
        forward_and_gradients(slide_attention_qkvpacked, inputs, backend="triton") for _ in range(3)
    ]
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))


def test_takes_no_memory_for_neighbours():
    inputs = to_gpu(make_inputs(2, 200, 320, 3, 32), torch.bfloat16)
    forward_and_gradients(slide_attention_qkvpacked, inputs, backend="triton")
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward_and_gradients(slide_attention_qkvpacked, inputs, backend="triton")
    tensor = inputs[0].nbytes / 3
    # Output, its gradient, three gradients; attention weights and their gradients; parts.
    assert torch.cuda.max_memory_allocated() - held < (5 + 2 * 9 / 32 + 0.5) * tensor


def test_nobody_waits():
    inputs = to_gpu(make_inputs(1, 20, 30, 3, 32), torch.float16)
    weight = torch.ones_like(inputs[0][:, :, :, 0])

    def run():
        output = slide_attention_qkvpacked(*inputs, backend="triton")
        return torch.autograd.grad(output, inputs, weight)

    run()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_type
def test_captured_in_a_cuda_graph(dtype):
    torch.use_deterministic_algorithms(False)
    inputs = to_gpu(make_inputs(2, 40, 50, 3, 32), dtype)
    weight = torch.ones_like(inputs[0][:, :, :, 0])

    def run():
        output = slide_attention_qkvpacked(*inputs, backend="triton")
        return output, *torch.autograd.grad(output, inputs, weight)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        inputs[0].mul_(0.5)
    graph.replay()
    assert all(map(torch.equal, captured, run()))


def test_compiled_into_a_model():
    inputs = to_gpu(make_inputs(1, 20, 30, 3, 32), torch.float16)
    compiled = torch.compile(slide_attention_qkvpacked, fullgraph=True)
    expected = forward_and_gradients(slide_attention_qkvpacked, inputs, backend="triton")
    assert all(map(torch.equal, forward_and_gradients(compiled, inputs), expected))


def test_another_size_compiles_nothing():
    triton = pytest.importorskip("triton", "3.4")
    compiled = []
    for shape in ((1, 40, 64, 3, 32), (3, 7, 13, 3, 32), (1, 1, 1, 3, 32), (0, 4, 4, 3, 32)):
        inputs = to_gpu(make_inputs(*shape), torch.float16)
        forward_and_gradients(slide_attention_qkvpacked, inputs, backend="triton")
        triton.knobs.runtime.jit_cache_hook = lambda **options: compiled.append(options["repr"])
    triton.knobs.runtime.jit_cache_hook = None
    assert not compiled


def test_tensors_may_be_larger_than_32_bits_count():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free memory")
    torch.use_deterministic_algorithms(False)
    qkv, *weights = (x.detach() for x in to_gpu(make_inputs(1, 65, 70, 8, 32), torch.float16))
    many = qkv.expand(2400, *qkv.shape[1:]).contiguous()
    assert many.numel() > 2**31
    output = slide_attention_qkvpacked(many, *weights, backend="triton")
    assert torch.equal(output[-1], slide_attention_qkvpacked(qkv, *weights, backend="triton")[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_gpu_than_the_current_one():
    inputs = to_gpu(make_inputs(head_dim=32), torch.float16)
    there = [x.detach().to("cuda:1").requires_grad_() for x in inputs]
    results, expected = (
        forward_and_gradients(slide_attention_qkvpacked, x, backend="triton")
        for x in (there, inputs)
    )
    assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(results, expected, strict=True))
