#!/usr/bin/env bash
# slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [words of test.py]: evaluate as a SLURM job, one task for each GPU.
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS set its size; PYTHON names the interpreter.
set -euo pipefail
usage="usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [words of test.py]"
partition=${1:?$usage}
name=${2:?$usage}
config=${3:?$usage}
checkpoint=${4:?$usage}
shift 4

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$tools")")
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
read -ra more <<<"${SRUN_ARGS:-}"
exec srun --partition "$partition" --job-name "$name" --gres "gpu:$per_node" --ntasks "$gpus" \
    --ntasks-per-node "$per_node" --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit 1 ${more[@]+"${more[@]}"} \
    "${PYTHON:-python}" -u "$tools/test.py" "$config" "$checkpoint" --launcher slurm "$@"
