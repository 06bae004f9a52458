"""The first iteration of a run: until it has ended, a mistake leaves one line and nothing else."""

import contextlib
import copy
import io
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from slide_mm.checkpoints import CheckpointError
from slide_mm.engine.explaining import explain, read_loader_error
from slide_mm.engine.footprint import Footprint
from slide_mm.engine.locking import WorkDirTakenError
from slide_mm.engine.outputs import make_folder
from slide_mm.engine.preflight import silence_log
from slide_mm.engine.reporting import ConfigError, launched_rank

# Metrics that can be computed of some images; others may miss the rest.
_PARTIAL_METRICS = ("CocoMetric", "IoUMetric", "LVISMetric", "VOCMetric")


class FirstIteration(Hook):
    """Watches a run until its first iteration has ended.

    To be registered with the runner: before the first iteration it takes a batch through the
    validation, so that mistakes there needn't wait for the end of an epoch.
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self.cfg: Config | None = None
        self.is_over = False

    @contextmanager
    def leave_nothing_in(self, *folders: str | None) -> Iterator[None]:
        """Make the folders that the run writes to; restore them if it doesn't come so far.

        Raises:
            ConfigError: If one of them can't be written to.
        """
        # In a distributed run the first process sees to it.
        named = [folder for folder in folders if folder and launched_rank() == 0]
        footprints = [Footprint(folder) for folder in named]
        try:
            for folder in named:
                make_folder(folder)
            yield
        except WorkDirTakenError:  # What has come there is another run's.
            raise
        except BaseException:
            if not self.is_over:
                for footprint in reversed(footprints):
                    footprint.erase()
            raise

    def before_train(self, runner: Runner) -> None:
        """Try the validation that the training will come to."""
        require_batches(runner.train_dataloader, "train_dataloader")
        if runner.val_loop is not None:
            require_batches(runner.val_dataloader, "val_dataloader")
            try_evaluation(runner, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        """Refuse a test without images."""
        require_batches(runner.test_dataloader, "test_dataloader")

    def after_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        """Let what comes stay."""
        self.is_over = True

    def after_test_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        """Try the metrics, which would otherwise fail behind the last image."""
        if not self.is_over:
            with _quiet(runner):
                _try_metrics(runner.test_loop)
        self.is_over = True

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Let what comes stay: an older checkpoint may go for it."""
        self.is_over = True

    def after_train(self, runner: Runner) -> None:
        """Refuse a training that was none.

        Raises:
            ConfigError: If there was no iteration, in this run or before it.
        """
        if runner.iter == 0:
            raise ConfigError(
                f"the config's train_cfg asks for no iteration: {runner.cfg.train_cfg}"
            )


@contextmanager
def first_iteration() -> Iterator[FirstIteration]:
    """Turn whatever goes wrong before the first iteration has ended into one line.

    Raises:
        ConfigError: In place of any other exception.
    """
    first = FirstIteration()
    try:
        yield first
    except CheckpointError:
        raise
    except ConfigError as error:
        inner = read_loader_error(error)
        if not inner:
            raise
        raise ConfigError(inner.message) from error
    except Exception as error:
        if first.is_over:
            raise
        raise ConfigError(explain(error, first.cfg)) from error


def require_batches(loader: DataLoader, key: str) -> None:
    """Refuse a loader that would give nothing, for which loops wait in vain.

    Raises:
        ConfigError: If it has no images, or none that fill a batch.
    """
    try:
        images, batches = len(loader.dataset), len(loader)
    except TypeError:  # Streams don't know.
        return
    if images == 0:
        raise ConfigError(f"{key}.dataset has no image to use: tools/misc/check_data.py tells why")
    if batches == 0:
        raise ConfigError(
            f"{key} gives no batch: its dataset has {images} images for a batch_size of "
            f"{loader.batch_size}, with drop_last"
        )


def try_evaluation(runner: Runner, loop: BaseLoop) -> None:
    """Take one batch through a validation or a test, and through the metrics that allow it.

    Neither logs nor random states nor the weights' statistics show it afterwards.
    """
    loader = loop.dataloader
    if not hasattr(loop, "run_iter") or not hasattr(loader.dataset, "__len__"):
        return  # A foreign loop, or a stream.
    size = min(loader.batch_size or 1, len(loader.dataset))
    is_training = runner.model.training
    with _quiet(runner), keep_random_states():
        runner.model.eval()
        batch = loader.collate_fn([loader.dataset[index] for index in range(size)])
        loop.run_iter(0, batch)
        _try_metrics(loop)
        for metric in _metrics(loop):
            metric.results.clear()
        runner.model.train(is_training)


def _try_metrics(loop: BaseLoop) -> None:
    """Compute the metrics of the images that they have seen so far, which they keep."""
    for metric in _metrics(loop):
        if type(metric).__name__ not in _PARTIAL_METRICS:
            continue
        trial = copy.copy(metric)  # They note things of their first computation.
        trial.results = list(metric.results)
        if hasattr(trial, "img_ids"):
            # COCO's takes a minute for all the images that have no results yet.
            trial.img_ids = [prediction["img_id"] for _, prediction in trial.results]
        trial.evaluate(len(trial.results) * get_world_size())


def _metrics(loop: BaseLoop) -> list[BaseMetric]:
    return getattr(getattr(loop, "evaluator", None), "metrics", [])


@contextmanager
def _quiet(runner: Runner) -> Iterator[None]:
    """No hooks, no log and no output."""
    runner.call_hook = lambda *args, **kwargs: None
    try:
        with silence_log(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del runner.call_hook  # Uncovers the method of the class.


@contextmanager
def keep_random_states() -> Iterator[None]:
    """Leave the random numbers of Python, NumPy and PyTorch where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
