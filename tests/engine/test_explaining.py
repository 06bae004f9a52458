import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from torch import nn
from torch.utils.data import DataLoader, Dataset

from slide_mm.engine import ConfigError
from slide_mm.engine.explaining import explain, read_loader_error

RAISED = {
    KeyError("gt_boxes"): "KeyError: 'gt_boxes'",
    KeyError("no such thing"): "KeyError: no such thing",
    ValueError("wrong: this\nand that"): "ValueError: wrong: this and that",
    AssertionError(): "AssertionError: raise self.error",
    ConfigError("say so"): "ConfigError: say so",
}


class Failing(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    ("error", "num_workers"), [*((error, 0) for error in RAISED), (next(iter(RAISED)), 1)]
)
def test_the_same_out_of_a_loaders_process(error, num_workers):
    with pytest.raises(type(error)) as caught:
        next(iter(DataLoader(Failing(error), num_workers=num_workers)))
    line = explain(caught.value)
    if num_workers:
        line = line.replace("'no such thing'", "no such thing")  # The text has quotes.
    assert line.startswith(f"{RAISED[error]} (in ")
    assert f"{__name__}:" in line
    if isinstance(error, ConfigError):
        inner = read_loader_error(caught.value)
        assert (inner.message if num_workers else str(caught.value)) == "say so"


def test_part_that_was_being_built():
    step = dict(type="mmengine.Missing", scale=3)
    cfg = Config(dict(a=dict(pipeline=[dict(type="Other"), step]), b=dict(pipeline=[step])))
    with pytest.raises(KeyError) as caught:
        TRANSFORMS.build(cfg.a.pipeline[1])
    assert explain(caught.value, cfg).startswith("a.pipeline.1 (Missing): KeyError: ")


def test_part_that_was_running():
    cfg = Config(dict(model=dict(head=dict(type="Linear", in_features=2, out_features=2))))
    with pytest.raises(TypeError) as caught:
        nn.Linear(2, 2)("text")
    assert explain(caught.value, cfg).startswith("model.head (Linear): ")


def test_long_messages_are_cut():
    with pytest.raises(ValueError, match="word") as caught:
        raise ValueError("word " * 1000)
    assert len(explain(caught.value)) < 500
