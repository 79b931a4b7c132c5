"""What nvcc makes of the CUDA ss2d, without a GPU: no spills, few registers, wide reads of shared memory."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from .cuda_registers_ss2d import KERNELS, REGISTERS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels" / "csrc" / "cuda"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc to compile the CUDA kernels with")


def compiled(architecture: str, kind: str) -> tuple[Path, str]:
    """The cubin of ss2d_<kind>.cu and what ptxas said of it, made once for each state of the sources."""
    sources = sorted([*SOURCES.glob("*.h"), SOURCES / f"ss2d_{kind}.cu"])
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    folder = ROOT / "build" / "cuda_compiled"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"ss2d_{kind}_{architecture}"
    log = folder / f"{stem}-{digest}.log"
    with open(folder / f"{stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            for old in folder.glob(f"{stem}-*"):
                old.unlink()
            command = [NVCC, "-O3", "-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v"]
            command += [str(SOURCES / f"ss2d_{kind}.cu"), "-o", str(log.with_suffix(".cubin"))]
            done = subprocess.run(command, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, done.stderr[-3000:]
            log.with_suffix(".new").write_text(done.stderr)
            os.rename(log.with_suffix(".new"), log)
    return log.with_suffix(".cubin"), log.read_text()


def resources(log: str) -> dict[tuple[str, int, int], dict[str, int]]:
    """Registers and bytes of stack and spills, by kernel, states taken at once and number of states, 0 for any."""
    found = {}
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    for mangled, stack, stores, loads, registers in re.findall(pattern, log, re.DOTALL):
        name = re.search("ss2d_(forward|backward|reduce_rows|reduce_weights)", mangled)[0]
        numbers = [int(n) for n in re.findall(r"Li(\d+)E", mangled)] or [0, 0]
        found[(name, numbers[0], numbers[1])] = {
            "stack": int(stack),
            "spills": int(stores) + int(loads),
            "registers": int(registers),
        }
    return found


def check(architecture: str, kind: str) -> None:
    found = resources(compiled(architecture, kind)[1])
    assert len(found) == KERNELS
    assert {key[:2] for key in found} == set(REGISTERS)
    for (name, states, all_states), used in found.items():
        assert used["spills"] == 0 and used["stack"] == 0, (name, states, all_states, used)
        assert used["registers"] <= REGISTERS[name, states], (name, states, all_states, used)


def test_bfloat16_kernels_do_not_spill_and_keep_to_their_registers():
    check("sm_90", "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16"])
def test_every_kernel_on_every_architecture(architecture, kind):
    check(architecture, kind)


def disassembler() -> str | None:
    triton = find_spec("triton")
    bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if triton else None
    return str(bundled) if bundled and bundled.exists() else shutil.which("cuobjdump")


@pytest.mark.skipif(disassembler() is None, reason="no cuobjdump to read the machine code with")
def test_rows_are_read_in_wide_pieces_and_nothing_lies_in_local_memory():
    command = [disassembler(), "--dump-sass", str(compiled("sm_90", "bf16")[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    scans = [f for f in re.split(r"Function : ", done.stdout)[1:] if "ward" in f.split()[0]]
    assert len(scans) == 6
    for code in scans:
        name = code.split()[0]
        assert not re.search(r"\b(LDL|STL)\b", code), f"{name} uses local memory"
        assert not re.search(r"\b(ATOM|ATOMG|RED|ATOMS)\b", code), f"{name} uses atomics"
        # Positions come four at a time, and so do the step-size inputs of a step.
        for wide in (r"LDG\.E\.128", r"LDS\.128"):
            assert re.search(wide, code), f"{name} has no {wide}"
