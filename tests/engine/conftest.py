import pytest
import torch
from mmengine.config import Config


@pytest.fixture
def quick_trainings(monkeypatch):
    """Let trainings of tiny models take a second: one thread, and no layout of their configs."""
    monkeypatch.setattr(Config, "pretty_text", "")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
