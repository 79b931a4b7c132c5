"""What nvcc makes of the selective scan, without a GPU: no spills, few registers, wide copies."""

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

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "csrc" / "cuda"
TORCH = Path(find_spec("torch").origin).parent
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
# Most registers, by kernel and states held at once: 65536 / (128 threads * registers) blocks fit a multiprocessor.
REGISTERS = {
    ("scan_forward", 1): 96,
    ("scan_forward", 4): 128,
    ("scan_forward", 16): 128,
    ("scan_backward", 1): 128,
    ("scan_backward", 2): 255,
    ("gradient_ends", 0): 96,
    ("reduce_projections", 0): 48,
    ("reduce_weights", 0): 48,
    ("reduce_delta", 0): 48,
    ("join_segments", 0): 48,
}

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc to compile the CUDA kernels with")


def compiled(architecture: str) -> tuple[Path, str]:
    """The cubin and what ptxas said of it, made once for each state of the sources."""
    sources = sorted([*KERNELS.glob("*.h"), *KERNELS.glob("*.cu")])
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    folder = ROOT / "build" / "cuda_compiled"
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / f"{architecture}-{digest}.cubin"
    log = cubin.with_suffix(".log")
    with open(folder / f"{architecture}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            for old in folder.glob(f"{architecture}-*"):
                old.unlink()
            command = [NVCC, "-O3", "-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-DUSE_CUDA"]
            command += ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{TORCH / 'include'}"]
            command += [str(KERNELS / "selective_scan.cu"), "-o", str(cubin)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, done.stderr[-3000:]
            log.with_suffix(".new").write_text(done.stderr)
            os.rename(log.with_suffix(".new"), log)
    return cubin, log.read_text()


def resources(log: str) -> dict[tuple[str, str, int], dict[str, int]]:
    """Registers and bytes of stack and spills, by kernel, input type and states held at once."""
    found = {}
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    for mangled, stack, stores, loads, registers in re.findall(pattern, log, re.DOTALL):
        name = re.search("scan_forward|scan_backward|gradient_ends|reduce_[a-z]+|join_segments", mangled)[0]
        states = re.search(r"Li(\d+)E", mangled)
        kind = re.search(name + "I(f|NS0_8BFloat16E|NS0_7Float16E|NS\\w*?BFloat16E|NS\\w*?Float16E)", mangled)
        key = (name, kind[1] if kind else "", int(states[1]) if states else 0)
        found[key] = {"stack": int(stack), "spills": int(stores) + int(loads), "registers": int(registers)}
    return found


ARCHITECTURES = ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sm_80", "sm_100", "sm_120"))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills_and_registers_stay_below_their_ceilings(architecture):
    found = resources(compiled(architecture)[1])
    assert {(name, states) for name, _, states in found} == set(REGISTERS)
    assert len(found) == 26
    for (name, kind, states), used in found.items():
        assert used["spills"] == 0 and used["stack"] == 0, (name, kind, states, used)
        assert used["registers"] <= REGISTERS[name, states], (name, kind, states, used)


def disassembler() -> str | None:
    triton = find_spec("triton")
    bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if triton else None
    return str(bundled) if bundled and bundled.exists() else shutil.which("cuobjdump")


@pytest.mark.skipif(disassembler() is None, reason="no cuobjdump to read the machine code with")
def test_memory_is_read_and_written_in_wide_pieces():
    done = subprocess.run(
        [disassembler(), "--dump-sass", str(compiled("sm_90")[0])], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    functions = re.split(r"Function : ", done.stdout)[1:]
    scans = [f for f in functions if "scan_forward" in f.split()[0] or "scan_backward" in f.split()[0]]
    assert len(scans) == 15
    for code in scans:
        name = code.split()[0]
        assert not re.search(r"\b(LDL|STL)\b", code), f"{name} uses local memory"
        for wide in (r"LDGSTS\.E\.BYPASS\.(LTC128B\.)?128", r"STG\.E\.128", r"LDS\.128"):
            assert re.search(wide, code), f"{name} has no {wide}"
        assert "SHFL" in code or "scan_forward" in name
