#!/usr/bin/env bash
# Evaluate on several GPUs, or processes: dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT on each; else a free port is found.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [flags]" >&2; exit 2; }
config=$1 checkpoint=$2 gpus=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
meet=(--standalone)
if [ -n "${NNODES:-}${MASTER_ADDR:-}${PORT:-}" ]; then
  meet=("--nnodes=${NNODES:-1}" "--node_rank=${NODE_RANK:-0}"
    "--master_addr=${MASTER_ADDR:-127.0.0.1}" "--master_port=${PORT:-29500}")
fi
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
  "${meet[@]}" --nproc_per_node="$gpus" "$here/tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
