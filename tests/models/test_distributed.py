"""One step in two processes equals one step in a single process: DDP and FSDP2 over gloo, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_ddp_and_fsdp2_step_as_one_process_does() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, str(Path(__file__).with_name("distributed_steps.py"))],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "different" not in run.stdout, run.stdout
    assert (run.stdout.count("FSDP2 same"), run.stdout.count("DDP same")) == (2, 2)
