"""The CUDA library built for one architecture, from all its sources, and loaded: on any machine with nvcc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .cuda_compiled import NVCC

ROOT = Path(__file__).resolve().parents[2]
# Every op that the library implements; torch.ops.load_library has to register them all.
OPS = ("selective_scan", "_ss2d_sequences", "_pooled_scan", "_causal_conv1d")
LOAD = f"""
import json, sys
import torch
from vmamba_kernels import native
names = [op + end for op in {OPS!r} for end in ("", "_backward")]
asked = torch._C._dispatch_has_kernel_for_dispatch_key
from vmamba_kernels import backends
backends.operators()
with native.use_cuda_atomics():
    serves = [not native.cuda_misfit(capability) for capability in ((9, 0), (8, 0))]
brought = {{name: asked("vmamba::" + name, "CUDA") for name in names}}
print(json.dumps([native.load("cuda").reason, brought, serves]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="no nvcc: the CUDA library is not built"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the libraries with"),
]


def toolkit() -> str:
    """The folder of nvcc, which on the PATH may be a script that calls another."""
    said = subprocess.run([str(NVCC), "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True)
    top = [line.partition("TOP=")[2] for line in said.stderr.splitlines() if "TOP=" in line]
    return os.environ.get("CUDA_HOME") or os.path.realpath(top[0] if top else Path(str(NVCC)).parents[1])


def test_the_library_is_built_from_all_sources_loads_and_brings_every_op(tmp_path):
    # A copy, so that the tests beside this one go on without a CUDA library.
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("*.so", "*.hash", "__pycache__")
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=ignored)
    headers = Path(find_spec("torch").origin).parents[1] / "nvidia" / "cu13" / "include"
    environment = {**os.environ, "CUDA_HOME": toolkit(), "CPATH": str(headers), "PYTHONPATH": str(tmp_path / "kernels")}
    build = [sys.executable, "-c", "import setup; setup.make(setup.LIBRARIES['cuda'])"]
    settings = {"TORCH_CUDA_ARCH_LIST": "9.0", "VMAMBA_BUILD": "cuda"}
    done = subprocess.run(build, cwd=tmp_path, env=environment | settings, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    reason, brought, serves = json.loads(done.stdout.splitlines()[-1])
    assert reason == "" and all(brought.values()), (reason, brought)
    assert serves == [True, False]
