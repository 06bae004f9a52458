import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slide_mm.ops import cpu_kernel, slide_attention
from slide_mm.ops.reference import definition

pytestmark = pytest.mark.skipif(
    not cpu_kernel.is_available(), reason=f"no kernel: {cpu_kernel.unavailable_reason()}"
)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """An empty cache directory, and nothing loaded before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_kernel._load_library.cache_clear()
    yield tmp_path / "slide_mm"
    cpu_kernel._load_library.cache_clear()


def make_inputs(batch, height, width, num_heads, head_dim, kernel_size, layout="packed"):
    """Query, key, value, kernel, bias and position bias; `layout` is of the first three."""
    torch.manual_seed(0)
    taps = kernel_size**2
    if layout == "packed":  # parts of one tensor, channels contiguous
        inputs = torch.randn(batch, height, width, 3, num_heads, head_dim).unbind(3)
    else:  # channels first
        inputs = torch.randn(3, batch, num_heads, head_dim, width, height)
        inputs = inputs.permute(0, 1, 5, 4, 2, 3).unbind(0)
    weights = (
        torch.randn(head_dim, taps, kernel_size, kernel_size) / kernel_size,
        torch.randn(head_dim, taps),
        torch.randn(num_heads, taps),
    )
    return [tensor.requires_grad_() for tensor in (*inputs, *weights)]


def attend(*inputs, scale):
    return slide_attention(*inputs, scale=scale, backend="compiled")


def forward_and_gradients(function, inputs, scale):
    output = function(*inputs, scale=scale)
    differentiable = [tensor for tensor in inputs if tensor is not None]
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return output, *torch.autograd.grad(output, differentiable, weight)


def assert_equals_judge(inputs, scale, threads=(2,)):
    torch.set_num_threads(1)  # the judge's tensors are tiny
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    expected_output, *expected_gradients = forward_and_gradients(definition, exact, scale)
    for torch_threads in threads:
        torch.set_num_threads(torch_threads)
        output, *gradients = forward_and_gradients(attend, inputs, scale)
        torch.testing.assert_close(output.double(), expected_output, rtol=2e-5, atol=2e-5)
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            difference = torch.linalg.vector_norm(gradient - expected)
            assert difference <= 1e-4 * torch.linalg.vector_norm(expected)


def random_shapes(count):
    generator = random.Random(0)
    for _ in range(count):
        yield (
            generator.randint(1, 2),
            generator.randint(1, 40),
            generator.randint(1, 40),
            generator.randint(1, 8),
            generator.choice((8, 20, 32, 33, 64)),
            generator.choice((3, 5)),
        )


# The last two have several tiles in a row and a column, and a kernel larger than the image.
@pytest.mark.parametrize("shape", [*random_shapes(6), (1, 18, 70, 2, 16, 3), (1, 2, 1, 1, 8, 7)])
def test_equals_judge(shape):
    assert_equals_judge(make_inputs(*shape), scale=shape[4] ** -0.5, threads=(1, 4))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86 processors")
@pytest.mark.parametrize("processor", ["x86-64", "haswell"])
def test_equals_judge_with_narrower_vectors(processor, fresh_library, monkeypatch):
    monkeypatch.setattr(cpu_kernel, "_FLAGS", (*cpu_kernel._FLAGS, f"-march={processor}", "-O1"))
    assert_equals_judge(make_inputs(1, 18, 70, 1, 13, 3), scale=0.3)


@pytest.mark.parametrize("missing", [(4,), (5,), (4, 5)])
def test_equals_judge_without_biases(missing):
    inputs = make_inputs(1, 6, 9, 2, 8, 3)
    inputs = [None if i in missing else tensor for i, tensor in enumerate(inputs)]
    assert_equals_judge(inputs, scale=0.7)


def test_equals_judge_on_other_memory_layouts():
    assert_equals_judge(make_inputs(2, 6, 9, 2, 8, 3, layout="channels first"), scale=1.0)


def test_large_logits():
    inputs = make_inputs(1, 5, 5, 1, 8, 3)
    with torch.no_grad():
        inputs[0].mul_(300)
    output = attend(*inputs, scale=1.0)
    expected = definition(*inputs, scale=1.0)
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 4, 4, 2, 8, 3), (2, 0, 4, 2, 8, 3)])
def test_nothing_in_gives_nothing_out(shape):
    inputs = make_inputs(*shape)
    output, *gradients = forward_and_gradients(attend, inputs, 1.0)
    assert output.shape == inputs[0].shape
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_results_are_identical_whatever_the_number_of_threads():
    inputs = make_inputs(1, 70, 90, 3, 20, 3)
    results = []
    for threads in (1, 2, 2, 4):
        torch.set_num_threads(threads)
        results.append(forward_and_gradients(attend, inputs, 0.3))
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


def test_says_why_there_is_no_kernel(fresh_library, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not cpu_kernel.is_available()
    assert "no-such-compiler" in cpu_kernel.unavailable_reason()
    with pytest.raises(ValueError, match=r"no kernel here .*no-such-compiler.*: choose 'auto'"):
        attend(*make_inputs(1, 3, 3, 1, 8, 3), scale=1.0)


def test_paths_may_have_spaces(fresh_library, monkeypatch, tmp_path):
    """Those of the package, of PyTorch's OpenMP, of the compiler, and of what is written."""
    folder = tmp_path / "my own folder"
    folder.mkdir()
    runtimes = [Path(shutil.copy(path, folder)) for path in cpu_kernel._loaded_openmp()]
    (folder / "my c++").symlink_to(shutil.which("g++") or shutil.which("c++"))
    monkeypatch.setenv("CXX", str(folder / "my c++"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "my cache"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(cpu_kernel, "_SOURCE", Path(shutil.copy(cpu_kernel._SOURCE, folder)))
    monkeypatch.setattr(cpu_kernel, "_FLAGS", (*cpu_kernel._FLAGS, "-O0"))
    before = (
        f"55b7d280-55b7d2b0 r--p 00000000 fe:00 2608   {folder}/other.so\n55b7d280-55b7d2b0 r--p"
    )
    lines = [f"7f00-7f10 r-xp 00000000 fe:00 12   {path}" for path in runtimes]
    text, read_text = "\n".join([before, *lines]), Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path: text if path.name == "maps" else read_text(path)
    )
    assert cpu_kernel._loaded_openmp() == [str(path) for path in runtimes[:1]]
    assert cpu_kernel.unavailable_reason() is None
    assert len(list((folder / "my cache/slide_mm").iterdir())) == 1


def test_a_failed_build_leaves_nothing_behind(fresh_library, monkeypatch):
    monkeypatch.setattr(cpu_kernel, "_FLAGS", (*cpu_kernel._FLAGS, "--no-such-option"))
    assert "--no-such-option" in cpu_kernel.unavailable_reason()
    assert not fresh_library.exists() or not any(fresh_library.iterdir())


def test_processes_may_build_at_the_same_time(fresh_library, monkeypatch):
    # Unoptimised, as that builds in a fraction of the time.
    program = (
        "from slide_mm.ops import cpu_kernel;"
        "cpu_kernel._FLAGS = (*cpu_kernel._FLAGS, '-O0');"
        "assert cpu_kernel.is_available(), cpu_kernel.unavailable_reason()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list(fresh_library.iterdir())) == 1
