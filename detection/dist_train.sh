#!/usr/bin/env bash
# Train on several GPUs, or processes: dist_train.sh CONFIG GPUS [flags of tools/train.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT on each; else a free port is found.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [flags]" >&2; exit 2; }
config=$1 gpus=$2
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
meet=(--standalone)
if [ -n "${NNODES:-}${MASTER_ADDR:-}${PORT:-}" ]; then
  meet=("--nnodes=${NNODES:-1}" "--node_rank=${NODE_RANK:-0}"
    "--master_addr=${MASTER_ADDR:-127.0.0.1}" "--master_port=${PORT:-29500}")
fi
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
  "${meet[@]}" --nproc_per_node="$gpus" "$here/tools/train.py" "$config" --launcher pytorch "$@"
