#!/usr/bin/env bash
# Test with several processes: one a GPU, or any number on the CPU.
set -euo pipefail

# A folder of pack.py stands for config and checkpoint.
if [[ $# -ge 2 && -d $1 && $2 =~ ^[0-9]+$ ]]; then
    set -- "$1" "$@"
fi
if [[ $# -lt 3 ]]; then
    echo "usage: $0 CONFIG CHECKPOINT NPROC [options of tools/test.py]" >&2
    echo "       $0 FOLDER NPROC [options of tools/test.py], with a folder of pack.py" >&2
    echo "several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT on each" >&2
    exit 2
fi
config=$1 checkpoint=$2 nproc=$3
shift 3

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$nproc" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
