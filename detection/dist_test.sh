#!/usr/bin/env bash
# Evaluate on several GPUs, or processes: dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT on each; else a free port is found.
exec bash "$(dirname "${BASH_SOURCE[0]}")/../vmamba/openmmlab/launch.sh" "$0" "$@"
