"""The CUDA kernels compiled by g++ with the emulation header: programs that run files of cases without a GPU."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .compiler_version import version

ROOT = Path(__file__).resolve().parents[2]
HARNESS = Path(__file__).parent / "cuda_emulation"
KERNELS = ROOT / "kernels" / "csrc" / "cuda"
FLAGS = {
    "plain": ["-O1"],
    "asan": ["-O1", "-g1", "-fsanitize=address,alignment", "-fno-sanitize-recover=alignment"],
    "tsan": ["-O1", "-g1", "-fsanitize=thread"],
    "tsan-planted": ["-O1", "-g1", "-fsanitize=thread", "-DVMAMBA_PLANTED_RACE"],
}
# Types of tensors, as the programs number them.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Relative error of the outputs and gradients that are written in the input's type.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 7e-4}


def program(kind: str, source: str = "run_cases") -> Path:
    """The compiled harness `source`, built once for each state of all sources and of g++."""
    sources = sorted([*HARNESS.glob("*"), *KERNELS.glob("*.h"), *KERNELS.parent.glob("common/*.h")])
    described = " ".join([*FLAGS[kind], version("g++")]).encode()
    digest = hashlib.sha256(described + b"".join(p.read_bytes() for p in sources)).hexdigest()
    folder = ROOT / "build" / "cuda_emulated"
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / f"{source}-{kind}-{digest[:16]}"
    with open(folder / f"{source}-{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            for old in folder.glob(f"{source}-{kind}-????????????????"):
                old.unlink()
            command = ["g++", "-std=c++17", *FLAGS[kind], "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
            command += ["-Wno-parentheses", "-Wno-unused-variable", "-Wno-unused-but-set-variable"]
            command += ["-DVMAMBA_EMULATED", f"-I{HARNESS}", f"-I{KERNELS}", str(HARNESS / f"{source}.cpp")]
            done = subprocess.run([*command, "-o", f"{built}.new"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            os.rename(f"{built}.new", built)
    return built


def run_program(kind: str, source: str, cases: Path, results: Path) -> subprocess.CompletedProcess[str]:
    """Run the harness over a file of cases; its exit status is 66 where ThreadSanitizer reported something."""
    options = {"TSAN_OPTIONS": "halt_on_error=0:exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [str(program(kind, source)), str(cases), str(results)]
    if kind.startswith("tsan") and shutil.which("setarch"):
        command = ["setarch", "-R", *command]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **options}, timeout=300)


class WrittenCase(Protocol):
    """A case that a harness understands."""

    def write(self, file: Any) -> None: ...
    def read(self, file: Any) -> dict[str, Tensor]: ...


def run_cases(
    kind: str, source: str, cases: list[WrittenCase], folder: Path
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Tensor]]]:
    """Run the harness over cases; return what it said and, unless it failed, the results of each case."""
    with open(folder / "cases", "wb") as file:
        for case in cases:
            case.write(file)
    done = run_program(kind, source, folder / "cases", folder / "results")
    if done.returncode not in (0, 66):
        return done, []
    with open(folder / "results", "rb") as file:
        results = [case.read(file) for case in cases]
        assert not file.read(1)
    return done, results
