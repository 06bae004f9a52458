import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Models of tests are tiny: two threads would mostly wait for each other."""
    torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
