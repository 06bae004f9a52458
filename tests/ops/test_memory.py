import pytest
import torch

from slide_mm.ops import memory


@pytest.mark.parametrize("shape", [(0,), (3, 5), (1 << 20,), (1 << 21, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_type_and_shape(shape, dtype):
    tensor = memory.new_empty(torch.empty(1, dtype=dtype), shape)
    assert tensor.fill_(1).sum(dtype=torch.float64) == tensor.numel()
    assert (tensor.shape, tensor.dtype) == (shape, dtype)


def test_asks_for_whole_huge_pages_inside_the_tensor(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_advise", lambda: lambda *arguments: asked.append(arguments))
    tensor = memory.new_empty(torch.empty(1), [5 << 20])
    memory.new_empty(torch.empty(1), [1000])
    ((begin, size, _),) = asked
    assert begin % (2 << 20) == size % (2 << 20) == 0
    assert tensor.data_ptr() <= begin
    assert begin + size <= tensor.data_ptr() + tensor.nbytes
    assert size > tensor.nbytes - (4 << 20)


def test_systems_without_huge_pages(monkeypatch):
    monkeypatch.setattr(memory, "_advise", lambda: None)
    assert memory.new_empty(torch.empty(1), [5 << 20]).shape == (5 << 20,)
