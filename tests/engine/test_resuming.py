import itertools
import logging
import os
import random
import signal
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine.checkpoint_hook import WholeCheckpointHook, WholeFileBackend
from slide_mm.engine.locking import WorkDirLock
from slide_mm.engine.reporting import ConfigError
from slide_mm.engine.resuming import set_resume
from tests.engine.kills import checkpoints, kill_at_line, start, wait
from tests.engine.tiny_training import (
    DrawingModel,
    SumMetric,
    assert_same_state,
    draw_config,
    run,
)


class TestSetResume:
    """Checkpoints are epoch_1.pth, epoch_2.pth ..., of epochs 1, 2 ..."""

    def save(self, folder, epoch, width=4):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"epoch_{epoch}.pth"
        weights = DrawingModel(width).state_dict()
        state = dict(
            meta=dict(epoch=epoch, iter=3 * epoch),
            message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
            optimizer=dict(state={}),
        )
        torch.save(dict(state, state_dict=weights), path)
        os.utime(path, (epoch, epoch))
        return path

    def resolve(self, work_dir, settings=None, resume="auto"):
        cfg = Config(dict(work_dir=str(work_dir), **(settings or {})))
        meta = set_resume(cfg, resume, DrawingModel())
        assert (meta is not None) == bool(cfg.get("resume"))
        return cfg.get("resume"), cfg.get("load_from")

    @pytest.mark.parametrize("seed", range(20))
    def test_takes_the_newest_sound_one_of_this_model(self, seed, tmp_path, caplog):
        rng = random.Random(seed)
        sound = []
        for epoch in range(1, rng.randint(2, 5)):
            kind = rng.choice(["sound", "sound", "torn", "empty", "wider", "weights alone"])
            path = self.save(tmp_path, epoch, width=5 if kind == "wider" else 4)
            content = path.read_bytes()
            if kind == "sound":
                sound.append(path)
            elif kind == "torn":
                path.write_bytes(content[: rng.randrange(1, len(content) - 1)])
            elif kind == "empty":
                path.write_bytes(b"")
            elif kind == "weights alone":
                torch.save(DrawingModel().state_dict(), path)
            os.utime(path, (epoch, epoch))
        # The record may lag behind by one, be torn, or name what is gone or was elsewhere.
        record = tmp_path / "last_checkpoint"
        last = rng.choice(
            ["", "\0\0", "gone.pth", f"/moved/epoch_{epoch}.pth", f"epoch_{epoch}.pth"]
        )
        record.write_text(last)
        os.utime(record, (epoch, epoch))
        expected = (True, str(sound[-1])) if sound else (False, None)
        assert self.resolve(tmp_path) == expected

    def test_copied_folder(self, tmp_path):
        """The times of copied files are in any order; the record and the numbers count."""
        paths = [self.save(tmp_path, epoch) for epoch in (1, 2, 3)]
        record = tmp_path / "last_checkpoint"
        record.write_text(str(paths[2]))
        os.utime(paths[0], (9, 9))
        os.utime(record, (4, 4))
        assert self.resolve(tmp_path) == (True, str(paths[2]))

    def test_one_that_was_not_recorded_yet(self, tmp_path):
        paths = [self.save(tmp_path, epoch) for epoch in (1, 2, 3)]
        record = tmp_path / "last_checkpoint"
        record.write_text(str(paths[1]))
        os.utime(record, (2, 2))
        assert self.resolve(tmp_path) == (True, str(paths[2]))
        # But those of an earlier, longer run in the same folder are old.
        os.utime(paths[2], (1, 1))
        assert self.resolve(tmp_path) == (True, str(paths[1]))

    def test_names_and_folders_of_the_hook(self, tmp_path):
        path = self.save(tmp_path / "elsewhere/run", 2)
        path = path.rename(path.with_name("at[2]end.pth"))
        hook = dict(filename_tmpl="at[{}]end.pth", out_dir=str(tmp_path / "elsewhere"))
        settings = dict(default_hooks=dict(checkpoint=hook))
        assert self.resolve(tmp_path / "run", settings) == (True, str(path))

    def test_starts_as_the_config_says_without_any(self, tmp_path):
        pretrained = dict(resume=False, load_from="pretrained.pth")
        assert self.resolve(tmp_path / "nothing", pretrained) == (False, "pretrained.pth")

    def test_what_config_and_command_line_say(self, tmp_path):
        a, b, last = (str(self.save(tmp_path / name, 1)) for name in ("a", "b", "work"))
        assert self.resolve(tmp_path / "work", dict(load_from=a), b) == (True, b)
        assert self.resolve(tmp_path / "work", dict(load_from=a), "auto") == (True, last)
        assert self.resolve(tmp_path / "work", dict(load_from=a), None) == (None, a)
        assert self.resolve(tmp_path / "work", dict(resume=True, load_from=a), None) == (True, a)
        assert self.resolve(tmp_path / "work", dict(resume=True), None) == (True, last)

    def test_broken_one_that_was_named(self, tmp_path):
        path = self.save(tmp_path, 1)
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(CheckpointError, match=r"epoch_1.pth \(300 bytes\) cannot be read"):
            self.resolve(tmp_path, resume=str(path))


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
)
def test_killed_while_saving(seed, tmp_path, quick_trainings):
    """At any line: what has its name is whole, the run goes on, and nothing is left over."""
    rng = random.Random(seed)
    settings = draw_config(rng)
    settings["default_hooks"]["checkpoint"].update(max_keep_ckpts=1, save_best="sum/acc")
    settings["randomness"]["seed"] = 3  # Before the first checkpoint a new one would be drawn.
    whole = run(settings, tmp_path / "whole")
    folder = tmp_path / "killed"

    def train_and_die(line):
        kill_at_line(line)
        run(settings, folder, "auto")

    kinds = set()
    for _ in range(8):
        code = wait(start(train_and_die, rng.randrange(1, 150)))
        assert code in (0, -signal.SIGKILL)
        names = [name for name in checkpoints(folder) if not name.startswith(".")]
        for name in names:
            torch.load(folder / name, weights_only=False)
        before, kinds = kinds, {name.partition("_")[0] for name in names}
        assert before <= kinds  # Of the last and of the best there is always one.
    (folder / ".iter_1.123.pth").touch()  # Half-written.
    assert_same_state(run(settings, folder, "auto"), whole)
    # A best checkpoint that has just been replaced may stay.
    left_over = checkpoints(folder) - checkpoints(tmp_path / "whole")
    assert all(name.startswith("best_") for name in left_over)
    assert not checkpoints(tmp_path / "whole") - checkpoints(folder)


@pytest.mark.parametrize("seed", [0, 4])
def test_an_old_checkpoint_goes_when_the_new_one_is_whole(
    seed, tmp_path, monkeypatch, quick_trainings
):
    """The last ones and, as every validation here is better, the best ones."""
    settings = draw_config(random.Random(seed))  # By iterations, and by epochs.
    settings["train_dataloader"] |= dict(num_workers=0, persistent_workers=False)
    saving = dict(max_keep_ckpts=1, save_best="sum/acc", rule="greater")
    settings["default_hooks"]["checkpoint"].update(saving)
    acc, put, found = itertools.count(), WholeFileBackend.put, defaultdict(list)

    def look_and_put(backend, content, path):
        kind = Path(path).name.partition("_")[0]
        found[kind].append(sum(name.startswith(kind) for name in checkpoints(tmp_path)))
        put(backend, content, path)

    monkeypatch.setattr(SumMetric, "compute_metrics", lambda *_: dict(acc=next(acc)))
    monkeypatch.setattr(WholeFileBackend, "put", look_and_put)
    run(settings, tmp_path)
    assert found.keys() > {"best"}
    for numbers in found.values():
        assert numbers == [0] + [1] * (len(numbers) - 1) != [0]
    assert len(checkpoints(tmp_path)) == len(found)


@pytest.mark.parametrize(
    ("settings", "is_here"),
    [
        ({}, True),
        (dict(out_dir="elsewhere", backend_args=dict(backend="local")), True),
        (dict(out_dir="s3://bucket"), False),
        (dict(backend_args=dict(backend="petrel")), False),
        (dict(file_client_args=dict(backend="disk")), False),
    ],
)
def test_other_disks_are_left_to_their_own_backends(settings, is_here):
    hook = WholeCheckpointHook(interval=1, **settings)
    assert (hook.backend_args == dict(backend="whole_files")) == is_here


class TestWorkDirLock:
    def test_second_training_is_refused(self, tmp_path):
        with WorkDirLock(tmp_path):
            with pytest.raises(ConfigError, match="another training is running in"):
                WorkDirLock(tmp_path).take()
            assert not list(tmp_path.iterdir())
        WorkDirLock(tmp_path / "missing").take()
        with WorkDirLock(tmp_path):
            pass

    def test_freed_when_killed(self, tmp_path):
        """At once, though its loader processes live on."""

        def train():
            WorkDirLock(tmp_path).take()
            if os.fork() == 0:
                (tmp_path / "loader").write_text(str(os.getpid()))
                time.sleep(60)
            while not (tmp_path / "loader").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        assert wait(start(train)) == -signal.SIGKILL
        with WorkDirLock(tmp_path):
            pass
        os.kill(int((tmp_path / "loader").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("name", ["best_a.pth", "other.pth", "..", "best_folder", ""])
def test_removes_nothing_outside_its_folder(name, tmp_path):
    """MMEngine removes the best checkpoint that a checkpoint names, be it a folder."""
    outside, work_dir = tmp_path / "outside", tmp_path / "work"
    for folder in (outside / "best_folder", work_dir / "best_folder"):
        folder.mkdir(parents=True)
    (outside / "best_a.pth").touch()
    hub = MessageHub("tests", runtime_info={})
    hub.update_info_dict({"best_ckpt": str(outside / name), "keep_ckpt_ids": [3, "../outside/x"]})
    runner = SimpleNamespace(
        work_dir=str(work_dir), message_hub=hub, logger=logging.getLogger(__name__)
    )
    hook = WholeCheckpointHook(interval=1, save_best="a", rule="greater", max_keep_ckpts=1)
    hook.before_train(runner)
    assert hook.best_ckpt_path in (None, str(work_dir / name))
    assert (hook.best_ckpt_path is None) != name.startswith("best_")
    assert list(hook.keep_ckpt_ids) == [3]
