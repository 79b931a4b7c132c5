"""The CUDA sources compiled by nvcc without a GPU, and what came out: registers, spills, widths, instructions.

A source kernels/csrc/cuda/<source>.cu has a file cuda_registers_<source>.py beside this one. The name of a kernel is
that of its __global__ function without namespace; its number the first integer among its template arguments, else 0.

    CEILINGS      {(kernel, number): registers}: a row for every kernel, and a kernel for every row
    CEILINGS_OF   {"sm_120": {(kernel, number): registers}}: what an architecture has instead; optional
    INSTANCES     how many kernels the source has in all, so that none goes missing
    LOAD_BITS     {kernel: bits}: its widest read of global memory is at least that wide; optional
    STORE_BITS    the same of its writes; optional
    INSTRUCTIONS  {(kernel, number): (positions, ceiling)}: instructions of a thread per position, counted as
                  `sass.Function.instructions_per_position` says in the instance for bfloat16 (or the only one), on
                  sm_90; optional
    SPILLS        {("sm_80", kernel): bytes}: what a kernel may spill on an architecture; optional
    ATOMICS       kernels that hold atomics, for callers who ask for them; optional

`make test` compiles cuda_sample.cu, and holds it to the ceilings of the kernels that it names.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from . import sass
from .compiler_version import version

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels" / "csrc" / "cuda"
TORCH = Path(find_spec("torch").origin).parent
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ARCHITECTURES = ("sm_90", "sm_80", "sm_100", "sm_120")
FLAGS = ["-O3", "-std=c++17", "-cubin", "-Xptxas", "-v", "-DUSE_CUDA"]
SAMPLE = Path(__file__).with_name("cuda_sample.cu")
FLAGS += [f"-I{SOURCES}", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{TORCH / 'include'}"]


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin: its name, its number, the type of its input, and what ptxas says of it."""

    mangled: str
    name: str
    number: int
    type: str  # "f32", "bf16", "f16" or ""
    registers: int
    stack: int  # bytes
    spills: int  # bytes stored and loaded

    @property
    def label(self) -> str:
        arguments = ", ".join(filter(None, [self.type, str(self.number or "")]))
        return f"{self.name}<{arguments}>" if arguments else self.name


def sources() -> list[str]:
    """Names of the CUDA sources."""
    return sorted(path.stem for path in SOURCES.glob("*.cu"))


def table(source: str) -> ModuleType:
    """The ceilings of a source."""
    return import_module(f".cuda_registers_{source}", __package__)


def ceilings(source: str, architecture: str) -> dict[tuple[str, int], int]:
    """The most registers of each kernel of a source on an architecture."""
    return table(source).CEILINGS | getattr(table(source), "CEILINGS_OF", {}).get(architecture, {})


def compiled(source: str, architecture: str) -> tuple[Path, str]:
    """The cubin of a source (or the sample) and what ptxas said of it, made once for each state of sources and nvcc."""
    path = SOURCES / f"{source}.cu" if (SOURCES / f"{source}.cu").exists() else SAMPLE
    files = sorted([*SOURCES.parent.glob("common/*.h"), *SOURCES.glob("*.h"), path])
    described = " ".join([*FLAGS, version(str(NVCC))]).encode()
    digest = hashlib.sha256(described + b"".join(p.read_bytes() for p in files)).hexdigest()[:16]
    folder = ROOT / "build" / "cuda_compiled"
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / f"{source}-{architecture}-{digest}.cubin"
    log = cubin.with_suffix(".log")
    with open(folder / f"{source}-{architecture}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            for old in folder.glob(f"{source}-{architecture}-*"):
                old.unlink()
            command = [str(NVCC), *FLAGS, f"-arch={architecture}", str(path), "-o", str(cubin)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=570)
            assert done.returncode == 0, done.stderr[-3000:]
            log.with_suffix(".new").write_text(done.stderr)
            os.rename(log.with_suffix(".new"), log)
    return cubin, log.read_text()


def kernels(log: str) -> list[Kernel]:
    """The kernels that ptxas speaks of."""
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    found = []
    for mangled, stack, stores, loads, registers in re.findall(pattern, log, re.DOTALL):
        name, arguments = _split(mangled)
        numbers = re.findall(r"Li(\d+)E", arguments)
        number = int(numbers[0]) if numbers else 0
        found.append(
            Kernel(mangled, name, number, _type(arguments), int(registers), int(stack), int(stores) + int(loads))
        )
    return found


def _split(mangled: str) -> tuple[str, str]:
    """The name of a function and its mangled template arguments, "" if it has none."""
    nested = mangled.startswith("_ZN")
    rest, name = mangled[3 if nested else 2 :], ""
    while found := re.match(r"\d+", rest):
        length = int(found[0])
        name, rest = rest[found.end() : found.end() + length], rest[found.end() + length :]
        if not nested:
            break
    return name, rest[1:].rsplit("Ev", 1)[0] if rest.startswith("I") else ""


def _type(arguments: str) -> str:
    """The first type among mangled template arguments."""
    arguments = re.sub(r"L[a-z]n?\d+E", "", arguments)  # without integers
    first = re.match(r"(f)|(?:NS?\w*?)?\d+(\w*?bfloat16|\w*?float16|\w*?half)", arguments, re.IGNORECASE)
    if first is None:
        return ""
    named = (first[2] or "").lower()
    return "f32" if first[1] else "bf16" if named.endswith("bfloat16") else "f16"


def code_reader(cubin: Path) -> Callable[[Kernel], sass.Function]:
    """A function from a kernel to its instructions."""
    functions = sass.parse(sass.dump(cubin))
    return lambda kernel: functions[kernel.mangled]


def counted(found: list[Kernel], key: tuple[str, int]) -> Kernel:
    """The instance of a kernel whose instructions are counted: that for bfloat16, else the only one."""
    same = [k for k in found if (k.name, k.number) == key]
    wanted = [k for k in same if k.type == "bf16"] or same
    assert len(wanted) >= 1, f"INSTRUCTIONS: there is no kernel {key}"
    return wanted[0]
