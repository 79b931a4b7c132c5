"""compute-sanitizer over small calls of odd sizes on a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vmamba_kernels import native

ROOT = Path(__file__).resolve().parents[2]
SANITIZER = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(SANITIZER is None, reason="no compute-sanitizer"),
]


SCRIPTS = sorted(path.stem.removeprefix("cuda_small_") for path in Path(__file__).parent.glob("cuda_small_*.py"))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_sanitizer_finds_nothing(script, tool):
    if native.load("cuda").reason:
        pytest.skip(native.load("cuda").reason)
    # Every tensor its own allocation: what lies behind one is nobody's.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [SANITIZER, f"--tool={tool}", "--error-exitcode=9", sys.executable]
    path = Path(__file__).parent / f"cuda_small_{script}.py"
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, env=environment, timeout=500)
    said = done.stdout + done.stderr
    if "Device not supported" in said or "Unable to" in said:
        pytest.skip(f"compute-sanitizer refuses this machine: {said.strip().splitlines()[-1]}")
    assert done.returncode == 0, said[-3000:]
    assert done.stdout.strip().endswith(" ran")
