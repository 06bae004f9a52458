"""The GPU kernels without a GPU: interpreted, counted and compiled."""

import logging
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from slide_mm.analysis import gpu_kernels
from slide_mm.analysis.attention_benchmark import SHAPES
from slide_mm.analysis.attention_contenders import Shape
from slide_mm.ops import gpu_kernel, slide_attention, slide_attention_qkvpacked
from slide_mm.ops.reference import definition
from tests.ops.inputs import forward_and_gradients, make_inputs, relative_error

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    gpu_kernel._missing_triton() is not None, reason=f"'triton' {gpu_kernel._missing_triton()}"
)

TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3}


@pytest.fixture(scope="module")
def interpreter():
    """Calls a function in a process where Triton interprets, which must be told before all else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            assert not pool.submit(use_cpu).result()
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def use_cpu():
    """Whether the kernels are imported for a tensor that is on a CPU."""
    torch.set_num_threads(1)
    gpu_kernel._SUMMED["block"] = 512  # Small programs take the interpreter as long as large ones.
    slide_attention_qkvpacked(*make_inputs())
    return "slide_mm.ops.triton_kernels" in sys.modules


def draw_inputs(rng, kernel_sizes, largest):
    """Query, key, value and weights that float16 can hold, of any shape and layout."""
    shape = (rng.randint(1, 2), rng.randint(1, largest), rng.randint(1, largest), rng.randint(1, 3))
    kernel_size, head_dim = rng.choice(kernel_sizes), rng.choice((16, 32))
    qkv, *weights = (x.half().double() for x in make_inputs(*shape, head_dim, kernel_size))
    qkv = rng.choice(
        (
            qkv,
            qkv.transpose(1, 2).contiguous().transpose(1, 2),
            qkv.permute(0, 3, 4, 5, 1, 2).contiguous().permute(0, 4, 5, 1, 2, 3),
        )
    )
    kernel, *biases = (x.detach().requires_grad_() for x in weights)
    return [qkv.detach().requires_grad_(), kernel, *(rng.choice((None, x, x)) for x in biases)]


def find_errors(seed, kernel_sizes, largest):
    """Relative errors of output and gradients of a random call, by type."""
    torch.use_deterministic_algorithms(True)  # Fresh memory is full of NaN.
    rng = random.Random(seed)
    inputs, scale = draw_inputs(rng, kernel_sizes, largest), rng.choice((None, 0.3))
    is_packed = rng.random() < 0.7

    def attend(function, qkv, *weights, **options):
        if is_packed and function is not definition:
            return slide_attention_qkvpacked(qkv, *weights, **options)
        return function(*qkv.unbind(3), *weights, **options)

    expected = forward_and_gradients(
        lambda *given: attend(definition, *inputs_of(given, inputs), scale=scale),
        [x for x in inputs if x is not None],
    )
    errors = {}
    for dtype in TOLERANCES:
        cast = [x.detach().to(dtype).requires_grad_() for x in inputs if x is not None]
        if gpu_kernel.why_not(cast, inputs[1].shape[-1]):
            continue
        results = forward_and_gradients(
            lambda *given: attend(
                slide_attention, *inputs_of(given, inputs), scale=scale, backend="triton"
            ),
            cast,
        )
        errors[dtype] = [relative_error(*pair) for pair in zip(results, expected, strict=True)]
    return errors


def inputs_of(given, inputs):
    """Put None where inputs have it."""
    given = iter(given)
    return [x if x is None else next(given) for x in inputs]


def check(errors):
    assert errors
    assert all(max(x) < TOLERANCES[dtype] for dtype, x in errors.items()), errors


# One pixel; several heads; several images; several tiles.
@pytest.mark.parametrize(("seed", "largest"), [(2, 6), (8, 6), (12, 6), (51, 10)])
def test_equals_the_definition(seed, largest, interpreter):
    check(interpreter(find_errors, seed, (3,), largest))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 164))
def test_equals_the_definition_on_many_shapes(seed, interpreter):
    check(interpreter(find_errors, seed, (3,), 9))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kernel_size", [5, 7])
def test_equals_the_definition_of_large_neighbourhoods(kernel_size, seed, interpreter):
    check(interpreter(find_errors, seed, (kernel_size,), 5))


def compare_far_apart():
    """Outputs of two images as far apart as 32 bits can't count, and of the same side by side."""
    torch.use_deterministic_algorithms(False)
    qkv, *weights = (x.detach().half() for x in make_inputs(2, 3, 5, 1, 16))
    far = torch.empty(2**31 + qkv.numel(), dtype=torch.float16)
    far = far.as_strided(qkv.shape, (2**31, *qkv.stride()[1:])).copy_(qkv)
    return [slide_attention_qkvpacked(x, *weights, backend="triton") for x in (far, qkv)]


@pytest.mark.slow
def test_tensors_may_be_larger_than_32_bits_count(interpreter):
    assert torch.equal(*interpreter(compare_far_apart))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_launches_are_few_and_move_little(name, dtype):
    shape = SHAPES[name]
    forward, backward = gpu_kernels.record_launches(shape, dtype)
    query = torch.empty(shape, dtype=dtype, device="meta").nbytes
    assert len(forward) == 1
    assert len(backward) == 4
    assert sum(launch.count_bytes() for launch in forward) < 4.5 * query
    assert sum(launch.count_bytes() for launch in backward) < 14 * query


def test_nothing_is_compiled_anew_for_another_size():
    kinds = []
    for shape in ((1, 200, 320, 6, 32), (3, 7, 13, 6, 32), (1, 1, 1, 6, 32), (2, 1, 65, 6, 32)):
        forward, backward = gpu_kernels.record_launches(Shape(*shape), torch.bfloat16)
        kinds.append([gpu_kernels.specialise(launch) for launch in forward + backward])
    assert kinds[1:] == kinds[:1] * 3


@pytest.mark.slow
@pytest.mark.parametrize("capability", gpu_kernels.CAPABILITIES)
@pytest.mark.parametrize(
    ("dtype", "kernel_size", "head_dim"),
    [
        *((torch.bfloat16, 3, head_dim) for head_dim in gpu_kernel.HEAD_DIMS),
        *((torch.float32, 3, head_dim) for head_dim in gpu_kernel.HEAD_DIMS),
        *((torch.float16, 3, head_dim) for head_dim in (32, 64)),
        *((torch.bfloat16, 5, head_dim) for head_dim in gpu_kernel.HEAD_DIMS),
        *((torch.bfloat16, 7, head_dim) for head_dim in (16, 32)),
    ],
)
def test_no_kernel_spills(dtype, kernel_size, head_dim, capability):
    forward, backward = gpu_kernels.record_launches(
        Shape(1, 50, 60, 3, head_dim), dtype, kernel_size
    )
    for launch in forward + backward:
        resources = gpu_kernels.compile_launch(launch, capability)
        assert resources.stack == 0, (launch.name, resources)
        assert resources.shared <= 99 << 10, launch.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.double(), "needs float32, float16 or bfloat16"),
        (lambda x: x[..., :8], r"needs head_dim in \(16, 32, 64, 128\), not 8"),
        (lambda x: x, "needs a GPU"),
    ],
)
def test_says_what_it_needs(change, message, monkeypatch):
    monkeypatch.setattr(gpu_kernel, "is_interpreted", lambda: "GPU" not in message)
    query = change(torch.zeros(1, 4, 4, 2, 16))
    kernel = torch.zeros(query.shape[-1], 9, 3, 3)
    with pytest.raises(ValueError, match=f"^backend 'triton' {message}: choose 'auto'$"):
        slide_attention(query, query, query, kernel, backend="triton")


def test_kernel_sizes_that_have_too_few_registers(monkeypatch):
    monkeypatch.setattr(gpu_kernel, "is_interpreted", lambda: True)

    def reason(kernel_size, dtype, head_dim):
        return gpu_kernel.why_not([torch.zeros(1, 1, 1, 1, head_dim, dtype=dtype)], kernel_size)

    assert "registers for K = 5, head_dim 32 in torch.float32" in reason(5, torch.float32, 32)
    assert "registers for K = 7, head_dim 64 in torch.float16" in reason(7, torch.float16, 64)
    assert "registers for K = 9, head_dim 16 in torch.float16" in reason(9, torch.float16, 16)
    assert reason(5, torch.float16, 128) is None


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("torch.cuda.is_available", lambda: False, "needs a GPU"),
        (
            "torch.cuda.get_device_capability",
            lambda _: (7, 5),
            "needs a GPU of compute capability 8.0, not 7.5",
        ),
        ("triton.__version__", "3.2.0", "needs Triton 3.3, not 3.2.0"),
    ],
)
def test_tells_once_why_a_gpu_has_no_kernels(name, value, reason, monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(name, value)
    gpu_kernel._find_reason.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [gpu_kernel.unavailable_reason(0) for _ in range(3)] == 3 * [reason]
    gpu_kernel._find_reason.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        f"Slide Attention on this GPU runs without its fused kernels: 'triton' {reason}"
    ]
