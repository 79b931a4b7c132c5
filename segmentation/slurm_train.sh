#!/usr/bin/env bash
# Train on a SLURM cluster: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [flags of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS may be set.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../vmamba/openmmlab/launch.sh" "$0" "$@"
