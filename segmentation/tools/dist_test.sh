#!/usr/bin/env bash
# dist_test.sh CONFIG CHECKPOINT PROCESSES [words of test.py]: evaluate in several processes, one for each GPU, from any directory.
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT on each. PYTHON names the interpreter.
set -euo pipefail
usage="usage: $0 CONFIG CHECKPOINT PROCESSES [words of test.py]"
config=${1:?$usage}
checkpoint=${2:?$usage}
processes=${3:?$usage}
shift 3

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$tools")")
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"

meeting=(--standalone)
if [ -n "${MASTER_ADDR:-}" ]; then
    meeting=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --master_addr "$MASTER_ADDR" --master_port "${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${meeting[@]}" --nproc_per_node "$processes" \
    "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
