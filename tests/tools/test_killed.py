"""Trainings that are killed again and again end as one that was never killed.

pytest -m slow tests/tools/test_killed.py      # KILLS=200 for more, KILL_SEED=1 for others
"""

import os
import random
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.engine.kills import checkpoints, kill_at_line, start, wait
from tests.engine.tiny_training import assert_same_state

TRAIN = Path(__file__).resolve().parents[2] / "tools/train.py"
NUM_KILLS = int(os.environ.get("KILLS", "60"))

SAVING = """
default_hooks = dict(checkpoint=dict(type="CheckpointHook", max_keep_ckpts=1, {saving}))
custom_hooks = [{hooks}]
train_dataloader = dict(dataset=dict(dataset, pipeline=pipeline), {loader})
"""
EMA = "dict(type='EMAHook', momentum=0.1)"
SEGMENTATION = """
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(64, 64), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(48, 48)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_cfg = dict(max_iters=12, val_interval=4)
model = dict(backbone=dict(drop_path_rate=0.3))
"""
DETECTION = """
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomChoiceResize", scales=[(64, 64), (96, 96)], keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_cfg = dict(max_epochs=4, val_interval=2)
"""
TRAININGS = [
    ("semantic_fpn", SEGMENTATION, "interval=1", EMA, "num_workers=2, persistent_workers=True"),
    ("semantic_fpn", SEGMENTATION, "interval=3", "", "sampler=dict(type='DefaultSampler')"),
    ("mask_rcnn", DETECTION, "interval=1", EMA, "num_workers=2, persistent_workers=False"),
    ("mask_rcnn", DETECTION, "interval=1, by_epoch=False", "", "num_workers=0"),
]


def train(config: str, work_dir: Path, line: int | None = None) -> None:
    """Run tools/train.py --resume, to be killed at that line of saving."""
    log = os.open(work_dir.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)  # A fork has none of the threads that OpenMP counts on.
    if line is not None:
        kill_at_line(line)
    sys.argv = [str(TRAIN), config, "--work-dir", str(work_dir), "--resume"]
    runpy.run_path(str(TRAIN), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("training", range(len(TRAININGS)))
def test_killed_at_random_moments(training, write_config, tmp_path):
    base, text, saving, hooks, loader = TRAININGS[training]
    config = write_config(base, text + SAVING.format(saving=saving, hooks=hooks, loader=loader))
    rng = random.Random(int(os.environ.get("KILL_SEED", "0")) + 100 * training)
    whole = tmp_path / "whole"
    begin = time.monotonic()
    assert wait(start(train, config, whole)) == 0, whole.with_suffix(".txt").read_text()[-3000:]
    seconds = time.monotonic() - begin
    result = torch.load((whole / "last_checkpoint").read_text(), weights_only=False)

    killed, runs = Counter(), 0
    while killed.total() < NUM_KILLS / len(TRAININGS):
        runs += 1
        folder = tmp_path / f"run{runs}"
        while True:
            line = rng.randrange(1, 300) if rng.random() < 0.4 else None
            child = start(train, config, folder, line)
            if line is None:
                end = time.monotonic() + rng.uniform(0, seconds)
                while time.monotonic() < end and not os.waitid(
                    os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
                ):
                    time.sleep(0.005)
                os.kill(child, signal.SIGKILL)
            code = wait(child)
            if code == 0:
                break
            assert code == -signal.SIGKILL, folder.with_suffix(".txt").read_text()[-3000:]
            kind = "while saving" if line else "at some time"
            half = any(name.startswith(".") for name in checkpoints(folder))
            killed[kind + (", a file half-written" if half else "")] += 1
        last = torch.load((folder / "last_checkpoint").read_text(), weights_only=False)
        assert_same_state(last, result)
        assert checkpoints(folder) == checkpoints(whole)
    print(
        f"{base}, {saving}, {loader}: {seconds:.0f} s; {dict(killed)}; {runs} ended as they should"
    )
