import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    """The same number of threads on every machine."""
    torch.set_num_threads(2)
