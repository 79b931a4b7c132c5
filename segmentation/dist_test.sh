#!/usr/bin/env bash
# Evaluate on several GPUs, or processes: dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT on each.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [flags]" >&2; exit 2; }
config=$1 checkpoint=$2 gpus=$3
shift 3
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$gpus" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  "$root/segmentation/tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
