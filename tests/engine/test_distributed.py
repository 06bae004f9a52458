import pytest
import torch
from mmengine.config import Config

from slide_mm.engine import ConfigError, distributed


def test_launcher_needs_its_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    distributed.check_launcher("none")
    with pytest.raises(ConfigError, match=r"tools/dist_train.sh"):
        distributed.check_launcher("pytorch")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed, "get_device", lambda: "cpu")
    distributed.check_launcher("pytorch")
    with pytest.raises(ConfigError, match="slurm needs GPUs"):
        distributed.check_launcher("slurm")


def test_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(distributed, "get_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"4 processes .* 2 can be seen"):
        distributed.check_launcher("pytorch")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    distributed.check_launcher("pytorch")


def test_settings_without_gpus(monkeypatch):
    monkeypatch.setattr(distributed, "get_device", lambda: "cpu")
    monkeypatch.setattr(distributed.distributed, "init_process_group", lambda backend: None)
    model = dict(neck=dict(norm_cfg=dict(type="SyncBN")))
    for found in (True, False):
        cfg = Config(dict(launcher="pytorch", model=model, find_unused_parameters=found))
        distributed.prepare_for_cpu(cfg)
        assert cfg.model_wrapper_cfg.find_unused_parameters == found
        assert cfg.model_wrapper_cfg.device_ids is None
        assert cfg.model.neck.norm_cfg.type == "BN"
