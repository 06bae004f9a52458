"""Distributed runs on machines with and without GPUs."""

import os

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed, nn

from slide_mm.engine.config import iter_nodes, type_name
from slide_mm.engine.consistency import find_unused_parameters
from slide_mm.engine.reporting import ConfigError, log_once

_SYNC_BATCH_NORMS = ("SyncBN", "MMSyncBN")


def check_launcher(launcher: str) -> None:
    """Refuse a launcher that cannot work here.

    Raises:
        ConfigError: If the launcher has set no environment, or there are fewer GPUs than
            processes.
    """
    if launcher == "none":
        return
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise ConfigError(
            "--launcher pytorch needs torch.distributed.run to start the processes: use "
            "tools/dist_train.sh or tools/dist_test.sh"
        )
    if get_device() == "cpu" and launcher != "pytorch":
        raise ConfigError(
            f"--launcher {launcher} needs GPUs: without them use --launcher pytorch, as "
            "tools/dist_train.sh and tools/dist_test.sh do"
        )
    num_local, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if get_device() == "cuda" and num_local > num_gpus:
        raise ConfigError(
            f"{num_local} processes on this machine need as many GPUs, and {num_gpus} can be seen: "
            "start fewer, or check CUDA_VISIBLE_DEVICES"
        )


def find_unused_for_ddp(cfg: Config, model: nn.Module) -> None:
    """Let a distributed training of a config's model pass over parameters without a gradient."""
    if cfg.launcher == "none":
        return
    unused = find_unused_parameters(model)
    if unused:
        cfg.find_unused_parameters = True
        if cfg.get("model_wrapper_cfg"):
            cfg.model_wrapper_cfg.find_unused_parameters = True
        log_once(
            f"find_unused_parameters=True, for {len(unused)} parameters get no gradient, such as "
            f"{unused[0]}: no head looks at their map. Leave it out, as out_indices=(1, 2, 3) "
            "does for a neck with start_level=1, and training takes less time"
        )


def prepare_for_cpu(cfg: Config) -> None:
    """Let a distributed run work without GPUs, which MMEngine takes for granted.

    Starts the process group with gloo, so that MMEngine need not start it with NCCL, and changes
    the config: no device ids for DistributedDataParallel, and BatchNorm for SyncBN, which exists
    on GPUs alone.
    """
    if cfg.launcher == "none" or get_device() != "cpu":
        return
    distributed.init_process_group("gloo")
    wrapper = cfg.get("model_wrapper_cfg") or dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    cfg.model_wrapper_cfg = {**wrapper, "device_ids": None}
    cfg.sync_bn = None
    norms = [node for _, node in iter_nodes(cfg.model) if type_name(node) in _SYNC_BATCH_NORMS]
    for norm in norms:
        norm["type"] = "BN"
    if norms:
        log_once("SyncBN needs GPUs: using BN, with statistics of each process")


def leave_process_group() -> None:
    """End a distributed run in all processes together.

    One that exits while another still works breaks the other's connections, and gloo then aborts.
    """
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
