from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from slide_mm.engine import ConfigError, watching
from slide_mm.engine.watching import BACKENDS, SomePictures, watch


def make(**changes):
    hooks = dict(visualization=dict(type="DetVisualizationHook"))
    visualizer = dict(type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
    return Config(dict(default_scope="mmdet", default_hooks=hooks, visualizer=visualizer) | changes)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(watching, "find_spec", lambda package: package in BACKENDS)


@pytest.mark.parametrize("package", BACKENDS)
def test_values_and_pictures_go_there_too(package, installed):
    cfg = make()
    for _ in range(2):
        watch(cfg, package)
        assert [x.type for x in cfg.visualizer.vis_backends] == [
            "LocalVisBackend",
            BACKENDS[package],
        ]
        assert cfg.default_hooks.visualization.draw
    assert VISBACKENDS.get(BACKENDS[package]) is not None


def test_what_is_missing_is_told(installed, monkeypatch):
    with pytest.raises(ConfigError, match="has no visualizer, which --log wandb sends values by"):
        watch(make(visualizer=None), "wandb")
    with pytest.raises(ConfigError, match=r"has no default_hooks\.visualization"):
        watch(make(default_hooks={}), "wandb")
    monkeypatch.setattr(watching, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        watch(make(), "tensorboard")


@pytest.mark.parametrize(("batches", "interval"), [(1, 1), (15, 1), (100, 12), (5000, 625)])
def test_each_validation_is_drawn_from(batches, interval):
    drawing, other = SimpleNamespace(draw=True, interval=50), SimpleNamespace(interval=50)
    runner = SimpleNamespace(hooks=[drawing, other], val_dataloader=range(batches))
    SomePictures().before_val_epoch(runner)
    assert (drawing.interval, other.interval) == (interval, 50)
