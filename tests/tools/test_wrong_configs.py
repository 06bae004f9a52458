"""Configs altered at random either train the model that they ask for, or end in one line."""

import copy
import random
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine import ConfigError, load_config, train
from tests.tools.alterations import alter

ONE_ITERATION = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1, val_interval=1)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1))
log_processor = dict(by_epoch=False)
"""
SECONDS = 60


@contextmanager
def limited(seconds):
    def give_up(*_):
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


def write(fields, path):
    lines = ["nan = float('nan')", *(f"{key} = {value!r}" for key, value in fields.items())]
    path.write_text("\n".join(lines))


def refusal(config, work_dir):
    """Train a config; returns the line that refuses it, or None if it is trained."""
    try:
        with limited(SECONDS):
            train(str(config), work_dir=str(work_dir))
    except (ConfigError, CheckpointError) as error:
        return str(error)
    return None


def hold(fields, folder):
    """Train a config, and hold that it is trained as it says, or refused and nothing written."""
    config, work_dir = folder / f"{folder.name}.py", folder / "work"
    write(fields, config)
    before = listing(folder)
    line = refusal(config, work_dir)
    if line is not None:
        assert 2 < len(line.split()) < 100
        assert listing(folder) == before
        assert not work_dir.exists()
        return line
    trained = torch.load(work_dir / "iter_1.pth", weights_only=False)["state_dict"]
    cfg = load_config(config)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        asked = MODELS.build(cfg.model).state_dict()
    shapes = [{name: x.shape for name, x in weights.items()} for weights in (trained, asked)]
    assert shapes[0] == shapes[1]
    return None


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Laying out the config's text takes a third of the time.
    monkeypatch.setattr(Config, "pretty_text", property(repr))


@pytest.fixture(scope="module")
def originals(write_config):
    configs = [write_config(base, ONE_ITERATION) for base in ("mask_rcnn", "semantic_fpn")]
    return [Config.fromfile(config).to_dict() for config in configs]


def campaign(originals, folder, seeds):
    """Hold the property for alterations by seed; returns how many were trained."""
    failures, refused = [], []
    for seed in seeds:
        rng = random.Random(seed)
        fields, what = alter(originals[seed % 2], rng)
        place = folder / f"altered_{seed}"
        place.mkdir()
        if isinstance(fields.get("visualizer"), dict):
            fields["visualizer"].setdefault("name", place.name)
            if fields["visualizer"]["name"] == originals[seed % 2]["visualizer"]["name"]:
                fields["visualizer"]["name"] = place.name  # MMEngine keeps them by name.
        try:
            line = hold(fields, place)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"seed {seed}, {what}\n    {type(error).__name__}: {error!s:.300}")
            continue
        refused.append(line is not None)
        print(f"{seed}: {what}\n    {line}")
    assert not failures, "\n".join(failures)
    return refused


def test_altered_configs(originals, tmp_path):
    refused = campaign(originals, tmp_path, range(20))
    assert 5 < np.sum(refused) < 20


@pytest.mark.slow
def test_many_altered_configs(originals, tmp_path):
    campaign(originals, tmp_path, range(20, 420))


CROP = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomCrop", crop_size=[32, 32]),
    dict(type="PackSegInputs"),
]


@pytest.mark.parametrize(
    ("base", "key", "value", "said"),
    [
        (0, "model", 3, "model is 3"),
        (0, "train_dataloader.batch_size", 0, "batch_size=0"),
        (0, "optim_wrapper.optimizer.lr", -1, "optim_wrapper.optimizer (AdamW): ValueError"),
        (0, "train_dataloader.dataset.indices", [], "no"),
        (1, "train_dataloader.dataset.pipeline", CROP, "dataset.pipeline.2 (RandomCrop)"),
        (1, "custom_hooks", [dict(type="NoHook")], "custom_hooks.0 (NoHook): KeyError"),
        (1, "val_evaluator.iou_metrics", ["mXX"], "mXX"),
        (1, "train_cfg.max_iters", 0, "no iteration"),
    ],
)
def test_known_mistakes(originals, tmp_path, base, key, value, said):
    cfg = Config(copy.deepcopy(originals[base]))
    cfg.merge_from_dict({key: value})
    cfg.visualizer.name = tmp_path.name
    assert said in hold(cfg.to_dict(), tmp_path)


def test_trying_the_validation_leaves_no_trace(write_config, tmp_path):
    weights = {}
    for validate in (True, False):
        work_dir = tmp_path / str(validate)
        config = write_config("semantic_fpn", ONE_ITERATION)
        train(config, work_dir=str(work_dir), validate=validate)
        weights[validate] = torch.load(work_dir / "iter_1.pth", weights_only=False)["state_dict"]
        (log,) = work_dir.glob("*/*.log")
        lines = log.read_text().splitlines()
        assert "Iter(train) [1/1]" in next(line for line in lines if " Iter(" in line)
    assert all(value.equal(weights[False][name]) for name, value in weights[True].items())
