"""Hooks that the tests' configs add to a training."""

import os
import signal
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    """Kills the process, as the kernel does when memory runs out, after so many iterations."""

    def __init__(self, num_iters: int) -> None:
        self.num_iters = num_iters

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.num_iters:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class SaveWeightsHook(Hook):
    """Saves the weights and the last batch's images of every process."""

    priority = "LOWEST"

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.images = [sample.img_path for sample in data_batch["data_samples"]]

    def after_train(self, runner) -> None:
        path = Path(runner.work_dir, f"rank{runner.rank}.pt")
        torch.save({"weights": runner.model.module.state_dict(), "images": self.images}, path)


@HOOKS.register_module()
class WatchDtypeHook(Hook):
    """Logs the dtype in which the neck computes in training."""

    def before_train(self, runner) -> None:
        runner.model.neck.register_forward_hook(
            lambda module, args, outputs: runner.logger.info(f"neck in {outputs[0].dtype}")
        )
