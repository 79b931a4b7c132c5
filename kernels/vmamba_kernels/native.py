"""The compiled libraries: found beside this file, loaded once, and why one is missing."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

FOLDER = Path(__file__).parent
# As many as a backward is cut into where the shape allows; sums must not depend on threads. kTasks of csrc/cpu/tasks.h.
CPU_TASKS = 16
REMEDY = (
    "build it with `VMAMBA_BUILD=cpu pip install --no-build-isolation -e .` from the checkout (needs g++ or clang++)"
)
REMEDIES = {
    "cpu": REMEDY,
    "cuda": "build it with `VMAMBA_BUILD=cuda pip install --no-build-isolation -e .` from the checkout "
    "(needs nvcc; CUDA_HOME names its toolkit)",
}


class Row(NamedTuple):
    """One line of `explain()`: the backend that an operator uses on a device, and why not the others."""

    operator: str
    device: str
    backend: str
    reason: str


@dataclass
class Library:
    """One compiled library of operators: loaded, or the reason why not."""

    name: str
    loaded: bool = False
    reason: str = ""

    def path(self) -> Path:
        return FOLDER / f"libvmamba_{self.name}.so"


_libraries: dict[str, Library] = {}


def load(name: str) -> Library:
    """The library `name` ("cpu", "cuda"), loaded at the first call; its `reason` says why it is missing if it is.

    Never raises: an absent library leaves the operators on their reference.
    """
    if name not in _libraries:
        _libraries[name] = _try_load(Library(name))
    return _libraries[name]


def _try_load(library: Library) -> Library:
    path = library.path()
    if not path.is_file():
        library.reason = f"no compiled library {path.name}; {REMEDIES[library.name]}"
        return library
    try:
        torch.ops.load_library(os.fspath(path))
        library.loaded = True
    except (OSError, RuntimeError) as error:
        library.reason = f"{path.name} does not load with torch {torch.__version__}: {str(error).splitlines()[0]}"
    return library


def asked_once(op: str) -> Callable[[str], str]:
    """A function from "cpu" or "cuda" to why that library does not bring `vmamba::op`, "" if it does.

    The dispatcher is asked now and never again, since torch.compile does not look into it.
    """
    asked = torch._C._dispatch_has_kernel_for_dispatch_key
    brought = {name: load(name).loaded and asked(f"vmamba::{op}", name.upper()) for name in REMEDIES}

    def missing(name: str) -> str:
        reason = load(name).reason
        if reason or brought[name]:
            return reason
        return f"libvmamba_{name}.so was built without it; {REMEDIES[name]}"

    return missing


def _symbols(name: str) -> ctypes.CDLL:
    library = load(name)
    if not library.loaded:
        raise RuntimeError(library.reason)
    return ctypes.CDLL(os.fspath(library.path()))


@cache
def _cpu_symbols() -> ctypes.CDLL:
    symbols = _symbols("cpu")
    symbols.vmamba_cpu_isa.restype = ctypes.c_char_p
    symbols.vmamba_use_cpu_isa.argtypes = [ctypes.c_char_p]
    return symbols


@cache
def _cuda_symbols() -> ctypes.CDLL:
    symbols = _symbols("cuda")
    symbols.vmamba_cuda_misfit.restype = ctypes.c_char_p
    symbols.vmamba_cuda_misfit.argtypes = [ctypes.c_int, ctypes.c_int]
    symbols.vmamba_cuda_use_atomics.argtypes = [ctypes.c_int]
    return symbols


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use: "avx512", "avx2" or "portable".

    It is the best one of the processor, or the one named by the environment variable VMAMBA_CPU_ISA.
    RuntimeError if the CPU library is absent.
    """
    return _cpu_symbols().vmamba_cpu_isa().decode()


@contextmanager
def use_cpu_isa(name: str) -> Iterator[None]:
    """Make the CPU kernels of the whole process use one instruction set for a while; for tests and measurements.

    ValueError if this processor or this build has no such set.
    """
    symbols = _cpu_symbols()
    before = symbols.vmamba_cpu_isa()
    if not symbols.vmamba_use_cpu_isa(name.encode()):
        raise ValueError(f"instruction set {name!r} is not available on this processor")
    try:
        yield
    finally:
        symbols.vmamba_use_cpu_isa(before)


def cuda_misfit(capability: tuple[int, int]) -> str:
    """Why the CUDA library has no code for a GPU of that compute capability, with the remedy; "" if it has.

    The operators raise a RuntimeError of these words before they launch anything there. "" too without the library.
    """
    why = _cuda_symbols().vmamba_cuda_misfit(*capability) if load("cuda").loaded else None
    return why.decode() if why else ""


@contextmanager
def use_cuda_atomics(wanted: bool = True) -> Iterator[None]:
    """Let the CUDA backwards of the whole process add what thread blocks share by atomics for a while.

    They then need less memory, and results vary by rounding from run to run. Without it, sums are made in two stages of
    a fixed order. The environment variable VMAMBA_CUDA_ATOMICS=1 is the same from the start. RuntimeError, with the
    remedy, if the CUDA library is absent.
    """
    symbols = _cuda_symbols()
    before = symbols.vmamba_cuda_use_atomics(wanted)
    try:
        yield
    finally:
        symbols.vmamba_cuda_use_atomics(before)


def explain() -> list[Row]:
    """Rows (operator, device, backend, reason): the backend of each operator on each device, and why not the others."""
    from . import backends

    rows = []
    for operator in backends.operators():
        for device in ("cpu", "cuda"):
            chosen, refused = backends.choose(operator, device)
            reason = "; ".join(f"{name}: {why}" for name, why in refused)
            rows.append(Row(operator, device, chosen.name, reason))
    return rows
