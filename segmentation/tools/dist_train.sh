#!/usr/bin/env bash
# dist_train.sh CONFIG PROCESSES [words of train.py]: train in several processes, one for each GPU, from any directory.
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT on each. PYTHON names the interpreter.
set -euo pipefail
usage="usage: $0 CONFIG PROCESSES [words of train.py]"
config=${1:?$usage}
processes=${2:?$usage}
shift 2

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$tools")")
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"

meeting=(--standalone)
if [ -n "${MASTER_ADDR:-}" ]; then
    meeting=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --master_addr "$MASTER_ADDR" --master_port "${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${meeting[@]}" --nproc_per_node "$processes" \
    "$tools/train.py" "$config" --launcher pytorch "$@"
