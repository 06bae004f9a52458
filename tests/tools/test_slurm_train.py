import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What SLURM's own commands do in a job of two nodes, one process a node.
SCONTROL = """#!/bin/sh
test "$1 $2 $3" = "show hostnames gpu[3-4]" && printf 'gpu3\\ngpu4\\n'
"""
SRUN = """#!/bin/sh
test "$1" = --kill-on-bad-exit=1 && shift
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || exit; done
"""


def run(folder, *arguments):
    for name, script in {"scontrol": SCONTROL, "srun": SRUN}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "20005", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[3-4]"}
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "tools/slurm_train.sh", *arguments],
        cwd=ROOT,
        env={**os.environ, **job, "PATH": path, "PYTHON": "echo"},
        capture_output=True,
        text=True,
    )


def test_each_node_starts_its_processes(tmp_path):
    nodes = run(tmp_path, "my config.py", "8", "--amp").stdout.splitlines()
    for rank, node in enumerate(nodes):
        assert f"--nnodes=2 --node_rank={rank} --nproc_per_node=8" in node
        assert "--master_addr=gpu3 --master_port=20005" in node
        assert node.endswith("train.py my config.py --launcher pytorch --resume --amp")
    assert len(nodes) == 2


def test_says_how_it_is_used(tmp_path):
    trial = run(tmp_path, "config.py")
    assert trial.returncode == 2
    assert "CONFIG NPROC" in trial.stderr
