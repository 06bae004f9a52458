import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slide_mm.ops import cpu_kernel, slide_attention_qkvpacked
from slide_mm.ops.reference import definition
from tests.ops.inputs import forward_and_gradients, make_inputs, relative_error

pytestmark = pytest.mark.skipif(
    not cpu_kernel.is_available(), reason=f"no kernel: {cpu_kernel.unavailable_reason()}"
)


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """An empty cache directory, and nothing loaded before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_kernel._load_library.cache_clear()
    yield tmp_path / "slide_mm"
    cpu_kernel._load_library.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86 processors")
@pytest.mark.parametrize("processor", ["x86-64", "haswell"])
def test_equals_the_definition_with_narrower_vectors(processor, fresh_library, monkeypatch):
    monkeypatch.setattr(cpu_kernel, "_FLAGS", (*cpu_kernel._FLAGS, f"-march={processor}", "-O1"))
    # Several tiles in a row and a column, and channels that fill no vector.
    inputs = make_inputs(1, 18, 70, 1, 13)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = forward_and_gradients(
        lambda qkv, *weights: definition(*qkv.unbind(3), *weights), exact
    )
    results = forward_and_gradients(slide_attention_qkvpacked, inputs, backend="compiled")
    assert max(map(relative_error, results, expected)) < 1e-4


def test_large_logits():
    inputs = make_inputs(1, 5, 5, 1, 8)
    with torch.no_grad():
        inputs[0][:, :, :, 0] *= 300
    output = slide_attention_qkvpacked(*inputs, backend="compiled")
    qkv, *weights = inputs
    expected = definition(*qkv.unbind(3), *weights)
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)


def test_says_why_there_is_no_kernel(fresh_library, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not cpu_kernel.is_available()
    assert "no-such-compiler" in cpu_kernel.unavailable_reason()
    with pytest.raises(ValueError, match=r"no kernel here .*no-such-compiler.*: choose 'auto'"):
        slide_attention_qkvpacked(*make_inputs(), backend="compiled")


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
