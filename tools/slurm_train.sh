#!/usr/bin/env bash
# An example of a batch job, which goes on where it stopped when SLURM requeues it:
#   sbatch --nodes=2 --gpus-per-node=8 tools/slurm_train.sh CONFIG NPROC [options of tools/train.py]
# NPROC is the number of processes of a node: one a GPU.
#SBATCH --job-name=slide_mm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --requeue
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: sbatch [options] $0 CONFIG NPROC [options of tools/train.py]" >&2
    exit 2
fi

export NNODES=$SLURM_JOB_NUM_NODES
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Two jobs on one machine need two ports.
export MASTER_ADDR PORT=$((20000 + SLURM_JOB_ID % 20000))
# SLURM runs a copy of this file elsewhere: the folder that sbatch was called in is the clone.
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash tools/dist_train.sh "$@"' \
    dist_train "$1" "$2" --resume "${@:3}"
