#!/usr/bin/env bash
# Train with several processes: one a GPU, or any number on the CPU.
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: $0 CONFIG NPROC [options of tools/train.py]" >&2
    echo "several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each" >&2
    exit 2
fi
config=$1 nproc=$2
shift 2

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$nproc" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
