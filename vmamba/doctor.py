"""Say what this installation is and which backend each operator uses: ``python -m vmamba.doctor``."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence

from vmamba import __version__
from vmamba.command_line import Parser
from vmamba.errors import exit_on_user_error
from vmamba.import_times import import_times

PACKAGES = ("torch", "torchvision", "triton", "numpy", "timm", "safetensors", "yacs", "mmengine", "mmdet")


def versions() -> list[tuple[str, str]]:
    """Return (name, version or reason) of this package, Python, the libraries and the compilers."""
    rows = [("vmamba", __version__), ("python", f"{platform.python_version()} on {platform.platform()}")]
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    rows.append(("c++", _first_line(os.environ.get("CXX", "c++"), "--version")))
    rows.append(("nvcc", _last_line(os.path.join(os.environ.get("CUDA_HOME", ""), "bin", "nvcc"), "nvcc")))
    rows.append(("VMAMBA_BUILD", os.environ.get("VMAMBA_BUILD", "auto (not set)")))
    return rows


def devices() -> list[tuple[str, str]]:
    """Return (device, description) for the CPU and every CUDA device that PyTorch sees."""
    import torch

    rows = [("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        rows.append((f"cuda:{index}", f"{properties.name}, {memory:.0f} GiB, sm_{properties.major}{properties.minor}"))
    if len(rows) == 1:
        reason = "this build of torch has no CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        rows.append(("cuda", reason))
    return rows


def misfits() -> list[str]:
    """Return what the compiled CUDA library has no code for, a line with the remedy for each such device."""
    import torch

    from vmamba_kernels import native

    found = [native.cuda_misfit(torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
    return [f"cuda:{index}: {why}" for index, why in enumerate(found) if why]


def backends() -> tuple[Sequence[tuple[str, ...]], list[str]]:
    """Return (operator, device, backend, error against the reference, why not another), and the backends that err."""
    import torch

    from vmamba.selfcheck import TOLERANCE, largest_error
    from vmamba_kernels import native

    rows, wrong = [], []
    for operator, device, backend, reason in native.explain():
        checked = "not checked, no such device"
        if backend == "cuda" and misfits():
            checked = "refuses a GPU"
        elif device == "cpu" or torch.cuda.is_available():
            error = largest_error(operator, device)
            checked = f"error {error:.0e}"
            if not error < TOLERANCE:
                wrong.append(f"{operator} ({backend}, {device})")
        rows.append((operator, device, backend, checked, reason))
    return rows, wrong


def _run(command: list[str]) -> list[str]:
    if shutil.which(command[0]) is None:
        return []
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line for line in answer.stdout.splitlines() if line.strip()]


def _first_line(program: str, flag: str) -> str:
    lines = _run([program, flag])
    return lines[0] if lines else "not found"


def _last_line(*programs: str) -> str:
    for program in programs:
        lines = _run([program, "--version"])
        if lines:
            return lines[-1]
    return "not found"


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = ["  " + "  ".join([cell.ljust(width) for cell, width in zip(row, widths)] + [row[-1]]) for row in rows]
    return "\n".join([title, *lines])


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.doctor", description=__doc__)
    parser.add_argument("--brief", action="store_true", help="only one line per operator and device")
    parser.add_argument("--imports", action="store_true", help="also time the imports, in fresh processes")
    arguments = parser.parse(argv)
    if not arguments.brief:
        print(_table("Versions", versions()))
    try:
        importlib.import_module("torch")
    except ImportError as error:
        print(f"torch cannot be imported ({error}). Next step: pip install -r requirements.txt")
        return 1
    if not arguments.brief:
        print(_table("Devices", devices()))
    if arguments.imports:
        print(_table("Imports", import_times()))
    rows, wrong = backends()
    print(_table("Backends", rows))
    refused = misfits()
    for line in refused:
        print(line)
    if wrong:
        print(f"WRONG RESULTS from {', '.join(wrong)}: set VMAMBA_BUILD=off, install again, and report this page")
    return 1 if wrong or refused else 0


if __name__ == "__main__":
    raise SystemExit(main())
