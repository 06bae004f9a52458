"""Random numbers that follow from a run's seed and the iteration alone.

A resumed training then equals one that was never ended, whatever was drawn in between, with any
number of loader processes, and checkpoints need not hold random states.
"""

import random
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import isclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS, LOOPS
from mmengine.runner import BaseLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, Sampler

from slide_mm.engine.reporting import log_once


def make_repeatable(cfg: Config, meta: Mapping[str, Any] | None = None) -> None:
    """Let all random numbers of a config's training follow from its seed and the iteration.

    Args:
        cfg: The config.
        meta: ``meta`` of the checkpoint that the training goes on from. Default: it starts anew.
    """
    meta = meta or {}
    seed, randomness = meta.get("seed"), dict(cfg.get("randomness") or {})
    if seed is not None:
        if randomness.get("seed", seed) not in (None, seed):
            log_once(f"going on with seed {seed} of the checkpoint, not {randomness['seed']}")
        cfg.randomness = {**randomness, "seed": seed}
    iteration = meta.get("iter", 0)
    endless = _is_iter_based(cfg)
    done = iteration if endless else meta.get("batches_of_epoch", 0)

    loader = cfg.train_dataloader
    if isinstance(loader.get("sampler"), dict):
        batches = loader.get("batch_sampler")
        settings = {} if batches else dict(drop_last=loader.pop("drop_last", False))
        settings |= dict(batch_sampler=batches, skip=done, first=iteration, endless=endless)
        loader.batch_sampler = ConfigDict(type="SeededBatchSampler", **settings)
    missed = meta.get("is_validated") is False
    hook = dict(type="RepeatableHook", batches_done=done, validation_missed=missed)
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), hook]


def seed_all(*key: int) -> None:
    """Seed Python, NumPy and PyTorch, on all devices.

    Args:
        key: Whole numbers, always as many, as trailing zeros don't count.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.manual_seed(int(words[0]))


@dataclass(frozen=True)
class SeededBatch:
    """The indices of a batch; each is given out with its own random states set.

    Loaders load one sample before they ask for the next index, in whichever process they do it.
    """

    indices: list[int]
    key: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        for position, index in enumerate(self.indices):
            seed_all(*self.key, position)
            yield index


@DATA_SAMPLERS.register_module()
class SeededBatchSampler(Sampler):
    """Numbers the batches of a training, and seeds each sample by its batch and its place there.

    Args:
        sampler: Gives the indices of the samples.
        batch_size: Samples in a batch.
        batch_sampler: Config of what groups them. Default: batches as they come.
        drop_last: Without ``batch_sampler``, leave out a last batch that is smaller.
        skip: Batches that the training has had: of its epoch, or of all epochs if ``endless``.
        first: Iteration that the first batch is for.
        endless: Go on with the next epoch after the last batch, as iteration-based loops do.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batch_sampler: dict[str, Any] | None = None,
        drop_last: bool = False,
        skip: int = 0,
        first: int = 0,
        endless: bool = False,
    ) -> None:
        self.sampler = sampler  # MMEngine tells it the epoch.
        self.batch_size = batch_size
        self.skip = skip
        self.endless = endless
        self._numbers = count(first)
        if batch_sampler is None:
            self._batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            default_args = dict(sampler=sampler, batch_size=batch_size)
            self._batches = DATA_SAMPLERS.build(batch_sampler, default_args=default_args)
        # That of the run, which MMEngine has set.
        self._key = (torch.initial_seed(), 1 + get_rank())

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[SeededBatch]:
        skip, self.skip = self.skip, 0
        for indices in islice(self._passes(), skip, None):
            yield SeededBatch(list(indices), (*self._key, next(self._numbers)))

    def _passes(self) -> Iterator[list[int]]:
        for epoch in count():
            if epoch and hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            batch = None
            for batch in self._batches:
                yield batch
            if batch is None or not self.endless:
                return


@HOOKS.register_module()
class RepeatableHook(Hook):
    """Seeds each iteration, and saves and takes up what MMEngine's checkpoints leave out.

    Args:
        batches_done: Batches of its epoch that the training has had, in iteration-based loops of
            all epochs.
        validation_missed: Whether the training was killed before the validation, if there was to
            be one, behind its last iteration.
    """

    priority = "VERY_HIGH"

    def __init__(self, batches_done: int = 0, validation_missed: bool = False) -> None:
        self.batches_done = batches_done
        self.validation_missed = validation_missed
        self._validated_at = -1
        self._gradients: Mapping[str, torch.Tensor] = {}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the gradients until the optimizer is there."""
        self._gradients = checkpoint.get("gradients", {})

    def before_train(self, runner) -> None:
        """Take up what the checkpoint says beside the weights."""
        self._epoch_begin = runner.iter - self.batches_done
        if not runner.iter:
            return
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = _PassedOver(loop.dataloader_iterator, runner.iter)
        for name, parameter in runner.model.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter)

    def before_train_epoch(self, runner) -> None:
        """Make up for a validation: checkpoints are saved before it."""
        if self.validation_missed and _is_validation_due(runner.train_loop, self.batches_done):
            runner.val_loop.run()
        self.validation_missed = False

    after_train = before_train_epoch  # The training may have come to its end.

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what the model draws."""
        seed_all(runner.seed, 0, runner.iter, 0)

    def before_val(self, runner) -> None:
        """Seed what the validation draws."""
        seed_all(runner.seed, 0, runner.iter, 1)

    def after_train_epoch(self, runner) -> None:
        """Note where the next epoch begins."""
        self._epoch_begin = runner.iter

    def after_val_epoch(self, runner, metrics: Any = None) -> None:
        """Note what has been validated."""
        self._validated_at = runner.iter

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save the place in the epoch, and gradients that wait for more to be added."""
        meta = checkpoint["meta"]
        meta["batches_of_epoch"] = meta["iter"] - self._epoch_begin
        meta["is_validated"] = meta["iter"] == self._validated_at
        gradients = {
            name: parameter.grad.cpu()
            for name, parameter in runner.model.named_parameters()
            if parameter.grad is not None
        }
        # Those of several processes differ until they are added.
        if gradients and get_world_size() == 1:
            checkpoint["gradients"] = gradients


class _PassedOver:
    """Batches of a loader whose sampler has passed over those that the training has had.

    MMEngine passes over them a second time: by ``skip_iter``, and before 0.10.8 by ``next``.
    """

    def __init__(self, batches: Iterator, num_had: int) -> None:
        self._batches = batches
        self._to_ignore = 0 if hasattr(batches, "skip_iter") else num_had

    def skip_iter(self, num_iters: int) -> None:
        pass

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        if self._to_ignore:
            self._to_ignore -= 1
            return None
        return next(self._batches)


def _is_validation_due(loop: BaseLoop, batches_done: int) -> bool:
    """Whether a loop validates where it stands, as MMEngine's decide it."""
    if loop.runner.val_loop is None or not hasattr(loop, "dynamic_milestones"):
        return False
    if isinstance(loop, IterBasedTrainLoop):
        now, end = loop.iter, loop.max_iters
    elif batches_done:  # It will come to the end of the epoch.
        return False
    else:
        now, end = loop.epoch, loop.max_epochs
    interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, now + 1) - 1]
    return now >= loop.val_begin and (now % interval == 0 or now == end)


def _is_iter_based(cfg: Config) -> bool:
    loop = cfg.train_cfg
    if "type" not in loop:
        return not loop.get("by_epoch", True)
    kind = loop.type
    if isinstance(kind, str):
        with LOOPS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
            kind = registry.get(kind)
    return isclass(kind) and issubclass(kind, IterBasedTrainLoop)
