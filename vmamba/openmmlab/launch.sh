#!/usr/bin/env bash
# What dist_train.sh, dist_test.sh, slurm_train.sh and slurm_test.sh of detection/ and segmentation/ have in common;
# those folders are of a checkout, so it works from one alone.
# launch.sh SCRIPT WORDS...: SCRIPT is the one that was called; its name says what to start and how.
set -euo pipefail
script=$1
shift
here=$(cd "$(dirname "$script")" && pwd)
root=$(dirname "$here")
need() { [ "$1" -ge "$2" ] || { echo "usage: $script $3 [flags]" >&2; exit 2; }; }
name=$(basename "$script" .sh)
case $name in
  dist_train) need $# 2 "CONFIG GPUS"; words=("$1") gpus=$2; shift 2 ;;
  dist_test) need $# 3 "CONFIG CHECKPOINT GPUS"; words=("$1" "$2") gpus=$3; shift 3 ;;
  slurm_train) need $# 4 "PARTITION JOB_NAME CONFIG WORK_DIR"; on=("$1" "$2") words=("$3" --work-dir "$4"); shift 4 ;;
  slurm_test) need $# 4 "PARTITION JOB_NAME CONFIG CHECKPOINT"; on=("$1" "$2") words=("$3" "$4"); shift 4 ;;
  *) echo "$script: no script of that name is known" >&2; exit 2 ;;
esac
tool=$here/tools/${name#*_}.py
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
if [ "${name%_*}" = slurm ]; then
  gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
  per_node=$(( per_node < gpus ? per_node : gpus ))
  # shellcheck disable=SC2086
  exec srun -p "${on[0]}" --job-name="${on[1]}" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tool" "${words[@]}" --launcher slurm "$@"
fi
meet=(--standalone)
if [ -n "${NNODES:-}${MASTER_ADDR:-}${PORT:-}" ]; then
  meet=("--nnodes=${NNODES:-1}" "--node_rank=${NODE_RANK:-0}"
    "--master_addr=${MASTER_ADDR:-127.0.0.1}" "--master_port=${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${meet[@]}" --nproc_per_node="$gpus" \
  "$tool" "${words[@]}" --launcher pytorch "$@"
