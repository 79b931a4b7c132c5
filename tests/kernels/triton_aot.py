"""Triton kernels compiled ahead of time for a GPU that need not be there, and what the compiler made of them.

A file `aot_<operator>.py` beside this one holds `KERNELS: list[AotKernel]`; `test_triton_aot.py` finds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from . import sass

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kernels" / "vmamba_kernels"
COMPILER = Path(__file__).with_name("triton_aot_compiler.py")


@dataclass(frozen=True)
class AotKernel:
    """One instance of a Triton kernel and the ceilings it is held to."""

    kernel: str  # module and function: "vmamba_kernels.cross_scan.triton:scan_kernel"
    signature: dict[str, str]  # run-time arguments in order -> Triton type: {"x": "*bf16", "H": "i32"}
    constexprs: dict[str, object]  # the others by name
    registers: int  # ceiling per thread
    elements: int = 0  # elements that one program computes; 0: instructions are not gated
    instructions: float = 0.0  # ceiling of instructions * 32 * num_warps / elements, the work of a GPU lane; 0: none
    num_warps: int = 4
    divisible: tuple[str, ...] = ()  # arguments known to be divisible by 16; pointers always are
    num_stages: int = 1
    load_bits: int = 64  # the widest read of global memory is at least that wide; 0 where nothing is contiguous
    store_bits: int = 64  # the same for writes
    stack: int = 0  # bytes of stack that it may spill to
    note: str = ""  # names the instance in the table where types and sizes do not

    @property
    def label(self) -> str:
        """The kernel with its types and all compile-time arguments."""
        values = ", ".join(f"{name}={value}" for name, value in self.constexprs.items())
        return f"{self.kernel.split(':')[1]} {self.types} {self.note} ({values}, {self.num_warps} warps)"

    @property
    def short(self) -> str:
        """The kernel with its types and its note or, without one, its compile-time sizes."""
        sizes = [f"{n}={v}" for n, v in self.constexprs.items() if isinstance(v, int) and not isinstance(v, bool)]
        return f"{self.kernel.split(':')[1]} {self.types} {self.note or ' '.join(sizes)}"

    @property
    def types(self) -> str:
        """The different types that its pointers point to."""
        return "/".join(dict.fromkeys(t[1:] for t in self.signature.values() if t.startswith("*")))


@dataclass(frozen=True)
class Compiled:
    """What ptxas made of a kernel."""

    registers: int  # per thread
    stack: int  # bytes per thread of stack and local memory: not 0 means spills
    shared: int  # bytes of shared memory, dynamic ones included
    listing: str = field(repr=False)  # as `cuobjdump --dump-sass` prints it

    @property
    def sass(self) -> sass.Function:
        """The instructions."""
        (function,) = sass.parse(self.listing).values()
        return function

    def instructions_per_element(self, elements: int, num_warps: int) -> float:
        """Thread instructions per element: the static count of the whole kernel, times its threads, by the elements.

        A static count takes a loop once: a kernel that loops has to give the elements of one turn.
        """
        return len(self.sass.instructions) * num_warps * 32 / elements


def missing() -> str:
    """Why nothing can be compiled here, "" if it can."""
    if find_spec("triton") is None:
        return "triton is not installed: no Triton kernel is compiled ahead of time"
    if sass.find_tool() is None:
        return "Triton's cuobjdump is absent: no Triton kernel is read back"
    return ""


def compile_ahead(kernel: AotKernel, architecture: int = 90) -> Compiled:
    """The kernel compiled for that compute capability (90: Hopper); kept under build/ by the hash of the sources."""
    return compile_all([kernel], architecture)[0]


def compile_all(kernels: Sequence[AotKernel], architecture: int = 90) -> list[Compiled]:
    """As `compile_ahead`, in one process for all that is not there yet."""
    folder = ROOT / "build" / "triton_ahead"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{_digest(kernel, architecture)}.json" for kernel in kernels]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = {str(path): asdict(kernel) for kernel, path in zip(kernels, paths, strict=True) if not path.exists()}
        if wanted:
            for old in folder.iterdir():
                if old.suffix == ".json" and not old.name.startswith(_sources()):
                    old.unlink()
            with TemporaryDirectory() as own:
                _compile(wanted, architecture, own)
    return [Compiled(**json.loads(path.read_text())) for path in paths]


def _compile(wanted: dict[str, dict[str, object]], architecture: int, cache: str) -> None:
    """Run the compiler, with the interpreter off and Triton's own cache in an empty folder, and read what it wrote."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), str(COMPILER.parent)]), "OMP_NUM_THREADS": "1"}
    environment |= {"TRITON_CACHE_DIR": cache, "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, str(COMPILER), str(architecture)],
        input=json.dumps(wanted), capture_output=True, text=True, env=environment, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for path in map(Path, wanted):
        cubin = path.with_suffix(".cubin")
        (used,) = sass.resources(cubin).values()
        shared = int(path.with_suffix(".shared").read_text())
        found = Compiled(used["REG"], used["STACK"] + used["LOCAL"], shared, sass.dump(cubin))
        path.with_suffix(".new").write_text(json.dumps(asdict(found)))
        os.rename(path.with_suffix(".new"), path)
        cubin.unlink()
        path.with_suffix(".shared").unlink()


def _digest(kernel: AotKernel, architecture: int) -> str:
    compiled = [kernel.kernel, kernel.signature, kernel.constexprs, kernel.num_warps, kernel.num_stages]
    described = json.dumps([*compiled, sorted(kernel.divisible), architecture])
    return f"{_sources()}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


@lru_cache(maxsize=1)
def _sources() -> str:
    """A hash of what the machine code depends on: every file that uses Triton, this harness, Triton's version."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if "triton" in path.read_text()]
    files += [*sorted(COMPILER.parent.glob("triton_*.py")), Path(sass.__file__)]
    files += [Path(find_spec("triton").origin)]  # its __init__.py holds the version
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
