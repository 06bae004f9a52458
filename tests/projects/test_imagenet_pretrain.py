import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from timm.utils import accuracy
from torch.nn import functional as F

from projects.imagenet_pretrain import TimmClassifier, TopKAccuracy
from slide_mm.checkpoints import CheckpointError
from slide_mm.engine import ConfigError, train
from slide_mm.models import SlidePVTv2

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "projects/imagenet_pretrain/configs"
ARCH = {
    "embed_dims": (8, 16, 16, 32),
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 2, 4),
    "mlp_ratios": (2, 2, 2, 2),
    "sr_ratios": (8, 4, 2, 1),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The digits' config on a small model and a few images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for name in "01":
            (folder / split / name).mkdir(parents=True)
            for index in range(8):
                pixels = rng.integers(0, 255, (40, 32 + 8 * int(name), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    lines = [
        f"_base_ = {str(CONFIGS / 'slide-pvtv2-b0_digits.py')!r}",
        f"model = dict(num_classes=2, arch={ARCH})",
        "loader = dict(batch_size=4, num_workers=0, persistent_workers=False)",
        f"train_dataloader = dict(**loader, dataset=dict(data_root={str(folder / 'training')!r}))",
        "val_dataloader = test_dataloader = dict(",
        f"    **loader, dataset=dict(data_root={str(folder / 'validation')!r})",
        ")",
        "train_cfg = dict(max_epochs=1)",
    ]
    path = folder / "config.py"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory):
    """What two processes with mixed precision have learned in an epoch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    work_dir = tmp_path_factory.mktemp("work_dir")
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "PORT": port}
    script = ROOT / "tools/dist_train.sh"
    command = [script, config, "2", "--work-dir", str(work_dir), "--amp", "--auto-scale-lr"]
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "top5" in process.stdout
    return work_dir / "epoch_1.pth"


def test_training_resumes(config, checkpoint, tmp_path):
    train(
        config,
        work_dir=str(tmp_path),
        resume=str(checkpoint),
        cfg_options={"train_cfg.max_epochs": 2},
    )
    # Two processes take half as many steps as one.
    assert torch.load(tmp_path / "epoch_2.pth", weights_only=False)["meta"]["iter"] == 2 + 4


def test_detectors_take_the_checkpoint_by_init_cfg(checkpoint):
    init_cfg = {"type": "Pretrained", "checkpoint": str(checkpoint), "prefix": "backbone."}
    backbone = SlidePVTv2(ARCH, init_cfg=init_cfg)
    backbone.init_weights()
    weights = torch.load(checkpoint, weights_only=False)["state_dict"]
    for name, tensor in backbone.state_dict().items():
        assert tensor.equal(weights[f"backbone.{name}"]), name
    other = SlidePVTv2("b0", init_cfg=init_cfg)
    with pytest.raises(CheckpointError, match="does not fit SlidePVTv2"):
        other.init_weights()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_configs_build_and_look_for_their_data(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^train_dataloader\.dataset\.data_root is data/"):
        train(str(path))
    cfg = Config.fromfile(path)
    if cfg.default_scope == "mmengine":
        assert len(MODELS.build(cfg.model)(torch.zeros(1, 3, 32, 32))) == 1


def test_wrong_model_is_named(config, tmp_path):
    with pytest.raises(ConfigError, match="timm has no model 'slide_swine'"):
        train(config, work_dir=str(tmp_path), cfg_options={"model.model_name": "slide_swine"})


def test_loss_without_mixing_is_smoothed_cross_entropy():
    model = TimmClassifier("slide_pvt_v2_b0", 7, {"prob": 0.0, "label_smoothing": 0.1}, arch=ARCH)
    model.eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 0, 6, 3])
    expected = F.cross_entropy(model(images), labels, label_smoothing=0.1)
    torch.testing.assert_close(model(images, labels, mode="loss")["loss"], expected)


@pytest.mark.parametrize("num_classes", [3, 20])
def test_accuracy_is_timms(num_classes):
    torch.manual_seed(0)
    logits, labels = torch.randn(30, num_classes), torch.randint(num_classes, (30,))
    metric = TopKAccuracy()
    for batch in (slice(0, 20), slice(20, 30)):
        metric.process({"labels": labels[batch]}, list(logits[batch]))
    expected = accuracy(logits, labels, topk=(1, 5))
    assert metric.evaluate(size=30) == pytest.approx(
        {"top1": expected[0].item(), "top5": expected[1].item()}
    )
