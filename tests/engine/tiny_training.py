"""Trainings of less than a second, with random numbers in all places where there can be any."""

import gc
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATA_SAMPLERS, DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.runner import Runner
from timm.layers import DropPath
from torch import nn
from torch.utils.data import BatchSampler

from slide_mm.engine.checkpoint_hook import save_checkpoints_whole
from slide_mm.engine.distributed import leave_process_group, prepare_for_cpu
from slide_mm.engine.randomness import make_repeatable, seed_all
from slide_mm.engine.resuming import set_resume
from slide_mm.engine.weights import read_checkpoints_safely


@MODELS.register_module()
class DrawingModel(BaseModel):
    """Draws from Python, NumPy and PyTorch in every forward pass."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5)),
            *(DropPath(0.3), nn.Linear(width, 2)),
        )

    def forward(self, inputs, mode="tensor", **_):
        inputs = torch.stack([torch.as_tensor(values) for values in inputs])
        noise = random.random() + np.random.rand() + torch.rand(1)
        if mode == "predict":
            return list(self.layers(inputs))
        return dict(loss=((self.layers(inputs) - noise) ** 2).mean())


@TRANSFORMS.register_module()
class DrawingTransform:
    """Draws from Python, NumPy and PyTorch, and may make the dataset take another sample."""

    def __call__(self, results):
        if np.random.rand() < 0.2:
            return None
        noise = random.random() + torch.rand(4, dtype=torch.float64).numpy()
        return dict(inputs=np.float32(results["sample_idx"] + noise + np.random.randn(4)))


@DATASETS.register_module()
class NumberDataset(BaseDataset):
    """Eleven numbers: whichever the batch size, the last batch is smaller."""

    def __init__(self, **kwargs) -> None:
        super().__init__(max_refetch=100, serialize_data=False, **kwargs)

    def load_data_list(self):
        return [dict(number=number) for number in range(11)]


@DATASETS.register_module()
class MixDataset:
    """Adds another sample to each, as Mosaic does."""

    def __init__(self, dataset) -> None:
        self.dataset = DATASETS.build(dataset)
        self.metainfo = self.dataset.metainfo

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        other = self.dataset[random.randrange(len(self))]
        return dict(inputs=self.dataset[index]["inputs"] + other["inputs"])


@DATA_SAMPLERS.register_module()
class ParityBatchSampler(BatchSampler):
    """Groups even and odd indices, as MMDetection does with wide and tall images."""

    def __init__(self, sampler, batch_size) -> None:
        super().__init__(sampler, batch_size, drop_last=False)

    def __iter__(self):
        groups = [], []
        for index in self.sampler:
            group = groups[index % 2]
            group.append(index)
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()
        rest = groups[0] + groups[1]
        for start in range(0, len(rest), self.batch_size):
            yield rest[start : start + self.batch_size]


@METRICS.register_module()
class SumMetric(BaseMetric):
    """Any number that follows from the weights."""

    default_prefix = "sum"

    def process(self, data_batch, data_samples):
        self.results += [float(sample.sum()) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(acc=sum(results))


def draw_config(rng: random.Random) -> dict:
    """Draw a training: its loop, sampler, batches, hooks and times to save."""
    by_epoch = rng.random() < 0.5
    dataset = dict(type="NumberDataset", pipeline=[dict(type="DrawingTransform")])
    loader = dict(
        batch_size=rng.choice([3, 4]),
        sampler=dict(type="DefaultSampler", shuffle=True),
        dataset=rng.choice([dataset, dict(type="MixDataset", dataset=dataset)]),
        **draw_workers(rng),
    )
    if not by_epoch and rng.random() < 0.5:
        loader["sampler"]["type"] = "InfiniteSampler"
    grouping = rng.choice(["as they come", "drop_last", "by parity"])
    if grouping == "by parity":
        loader["batch_sampler"] = dict(type="ParityBatchSampler")
    else:
        loader["drop_last"] = grouping == "drop_last"
    loop = dict(by_epoch=True, max_epochs=4) if by_epoch else dict(by_epoch=False, max_iters=15)
    save_by_epoch = by_epoch and rng.random() < 0.5
    saving = dict(
        type="CheckpointHook",
        interval=1 if save_by_epoch else rng.choice([4, 5]),
        by_epoch=save_by_epoch,
        save_best=rng.choice([None, "sum/acc"]),
    )
    schedule = [dict(type="LinearLR", start_factor=0.1, end=9, by_epoch=False)]
    if rng.random() < 0.5:  # Validations then decide about the weights.
        schedule = [dict(type="ReduceOnPlateauLR", monitor="sum/acc", patience=0, rule="greater")]
    optimizer = rng.choice([dict(type="AdamW", lr=0.01), dict(type="SGD", lr=0.1, momentum=0.9)])
    return dict(
        model=dict(type="DrawingModel"),
        train_dataloader=loader,
        train_cfg=dict(**loop, val_interval=2 if by_epoch else 4),
        optim_wrapper=dict(optimizer=optimizer, accumulative_counts=rng.choice([1, 1, 2])),
        param_scheduler=schedule,
        val_dataloader=dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=dataset,
        ),
        val_cfg={},
        val_evaluator=dict(type="SumMetric"),
        default_hooks=dict(checkpoint=saving, logger=dict(type="LoggerHook", interval=1)),
        custom_hooks=[dict(type="EMAHook", momentum=0.1)] if rng.random() < 0.5 else None,
        randomness=dict(seed=rng.choice([None, 3]), diff_rank_seed=rng.random() < 0.3),
        log_level="WARNING",
        launcher="none",
    )


def draw_workers(rng: random.Random) -> dict:
    """Draw the number of loader processes, and whether they live on after an epoch."""
    num_workers = rng.choice([0, 2])
    return dict(num_workers=num_workers, persistent_workers=num_workers > 0 and rng.random() < 0.5)


def run(settings: dict, work_dir: Path, resume: str | None = None) -> dict:
    """Train as the tools do, and return the last checkpoint."""
    cfg = Config(dict(settings, work_dir=str(work_dir), experiment_name=str(work_dir)))
    meta = set_resume(cfg, resume, MODELS.build(cfg.model))
    make_repeatable(cfg, meta)
    save_checkpoints_whole(cfg)
    prepare_for_cpu(cfg)
    seed_all(random.SystemRandom().getrandbits(32))  # What was before must not matter.
    read_checkpoints_safely()
    Runner.from_cfg(cfg).train()
    leave_process_group()
    gc.collect()  # Loader processes that the next run forks would inherit those of this one.
    return torch.load((work_dir / "last_checkpoint").read_text(), weights_only=False)


def assert_same_state(checkpoint: dict, other: dict) -> None:
    """Two trainings stand at the same point with the same weights, bit by bit."""
    assert checkpoint["meta"]["iter"] == other["meta"]["iter"]
    for part in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers", "gradients"):
        assert _flatten(checkpoint.get(part)) == _flatten(other.get(part)), part


def _flatten(node, key: str = "") -> dict:
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        return {key: node.tolist() if isinstance(node, torch.Tensor) else node}
    return {name: value for k, v in items for name, value in _flatten(v, f"{key}.{k}").items()}
