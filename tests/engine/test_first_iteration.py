import os
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine import ConfigError
from slide_mm.engine.first_iteration import _try_metrics, first_iteration, keep_random_states
from slide_mm.engine.footprint import Footprint


def contents(folder):
    """Every path below a folder, with what the files hold and when they were written."""
    return {
        path: None if path.is_dir() else (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("seed", range(8))
def test_folders_are_as_they_were(tmp_path, seed):
    """Whatever was there, and whatever a run adds or writes over."""
    rng = random.Random(seed)
    names = ["config.py", "last_checkpoint", "iter_1.pth", "20260101_000000", "vis_data"]
    work_dir = tmp_path / "a" / "b" if rng.random() < 0.5 else tmp_path / "c"
    existing = rng.sample(names, rng.randint(0, 5))
    if existing:
        work_dir.mkdir(parents=True)
    for name in existing:
        if "." in name or "last" in name:
            (work_dir / name).write_text(f"old {name}")
        else:
            (work_dir / name).mkdir()
            (work_dir / name / "log").write_text("old")
    before = contents(tmp_path)
    footprint = Footprint(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / "config.py").write_text("new")
    (work_dir / "20270101_000000" / "vis_data").mkdir(parents=True)
    (work_dir / "20270101_000000" / "vis_data" / "config.py").write_text("new")
    (work_dir / "link").symlink_to(tmp_path)
    if rng.random() < 0.5:
        (work_dir / "last_checkpoint").write_text("new")
    footprint.erase()
    assert contents(tmp_path) == before


def test_a_folder_that_is_gone(tmp_path):
    (tmp_path / "work").mkdir()
    footprint = Footprint(tmp_path / "work")
    shutil.rmtree(tmp_path / "work")
    footprint.erase()
    assert not os.listdir(tmp_path)


def test_folders_below_files(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "file/work", "file/a/b"):
        with pytest.raises(ConfigError, match=r"file is no folder"):
            Footprint(tmp_path / name)


def fail(work_dir, error, is_over=False):
    """A run that writes a file and fails."""
    with first_iteration() as first:
        first.cfg = Config({})
        with first.leave_nothing_in(str(work_dir), None):
            work_dir.mkdir(exist_ok=True)
            (work_dir / "log").touch()
            first.is_over = is_over
            raise error


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("wrong"), KeyError("key"), ConfigError("x"), CheckpointError("x")]
)
def test_one_line_until_the_first_iteration_is_over(tmp_path, error, is_over):
    stays = is_over or isinstance(error, ConfigError | CheckpointError)
    with pytest.raises(type(error) if stays else ConfigError) as caught:
        fail(tmp_path / "work", error, is_over)
    assert (tmp_path / "work").exists() == is_over
    assert str(error) in str(caught.value)


def test_ctrl_c_leaves_nothing_either(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "work", KeyboardInterrupt())
    assert not os.listdir(tmp_path)


def test_other_processes_leave_it_to_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError):
        fail(tmp_path / "work", ValueError("wrong"))
    assert (tmp_path / "work").exists()


class CocoMetric(BaseMetric):
    """Notes what it has seen first, as the real one does with the truth of its images."""

    img_ids = noted = None

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        if self.noted is None:
            self.noted = [prediction["img_id"] for _, prediction in results]
        assert self.img_ids is None or self.img_ids == self.noted
        return {"count": len(self.noted)}


class TestTryingMetrics:
    def loop(self, *metrics):
        return SimpleNamespace(evaluator=Evaluator(list(metrics)))

    def test_leaves_them_as_they_were(self):
        loop = self.loop(CocoMetric())
        samples = [(None, {"img_id": i}) for i in range(3)]
        loop.evaluator.metrics[0].results += samples[:1]
        _try_metrics(loop)
        loop.evaluator.metrics[0].results += samples[1:]
        assert loop.evaluator.evaluate(3) == {"count": 3}

    def test_fails_with_them(self):
        loop = self.loop(CocoMetric())
        loop.evaluator.metrics[0].results.append((None, {}))
        with pytest.raises(KeyError):
            _try_metrics(loop)


def test_random_numbers_go_on_as_if_nothing_was_drawn():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    seed()
    expected = draw()
    assert draw() != expected
    seed()
    with keep_random_states():
        draw()
    assert draw() == expected
