import copy
import functools
from pathlib import Path

import pytest
from mmengine.config import Config

_read = functools.cache(Config.fromfile)


@pytest.fixture(autouse=True, scope="module")
def read_each_config_once():
    """For each `mmdet::` MMEngine reads the whole of MMDetection's model index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Config,
            "fromfile",
            lambda path, **options: copy.deepcopy(_read(Path(path), **options)),
        )
        yield
