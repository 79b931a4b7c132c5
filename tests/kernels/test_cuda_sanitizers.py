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

SCRIPTS = sorted(path.stem.removeprefix("cuda_small_") for path in Path(__file__).parent.glob("cuda_small_*.py"))
# A copy to the GPU first: where the sanitizer refuses the machine, that fails, and no script has started.
START = """
import runpy, sys, torch
torch.ones(1).cuda()
print("started", flush=True)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def refusal(stdout: str, stderr: str) -> str:
    """What the sanitizer says of a machine on which it could not start a script, "" if the script started."""
    if "started" in stdout.split():
        return ""
    said = (stdout + stderr).strip().splitlines()
    return next((line for line in said if "Device not supported" in line or "Unable to" in line), "")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(SANITIZER is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_sanitizer_finds_nothing(script, tool):
    if native.load("cuda").reason:
        pytest.skip(native.load("cuda").reason)
    # Every tensor its own allocation: what lies behind one is nobody's.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [SANITIZER, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-c", START]
    path = Path(__file__).parent / f"cuda_small_{script}.py"
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, env=environment, timeout=500)
    if why := refusal(done.stdout, done.stderr):
        pytest.skip(f"compute-sanitizer refuses this machine: {why}")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "started" in done.stdout.split() and " ran\n" in done.stdout, said[-3000:]


def test_only_a_script_that_never_started_is_skipped():
    finding = "========= Invalid __global__ read\n========= Unable to find the source\n"
    assert refusal("started\n", finding) == refusal("started\n" + finding, "") == ""
    assert refusal("========= Error: Device not supported\n", "RuntimeError") == "========= Error: Device not supported"
    assert refusal("", "ModuleNotFoundError: torch") == ""
