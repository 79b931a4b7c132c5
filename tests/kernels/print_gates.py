"""Prints what the compilers make of every CUDA and Triton kernel, as Markdown tables; needs no GPU.

    PYTHONPATH=tests python -m kernels.print_gates [--architecture sm_90]

CUDA: nvcc; a row for each instance. tests/kernels/cuda_registers_*.py says which kernels have their instructions
counted, and at how many positions a loop; on sm_90, in the instance for bfloat16. Triton: ahead of time; a row for each
description in tests/kernels/aot_*.py. The ceilings stand there too; how instructions are counted, in
`instructions_per_position` of tests/kernels/sass.py and `instructions_per_element` of tests/kernels/triton_aot.py.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from . import cuda_compiled as cuda
from . import triton_aot

FOLDER = Path(__file__).parent


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def header(*cells: str) -> None:
    row(*cells)
    print("|" + "---|" * len(cells))


def cuda_table(architecture: str) -> None:
    """Every instance of every kernel of every CUDA source."""
    if cuda.NVCC is None:
        print("No nvcc: the CUDA kernels are not compiled.\n")
        return
    header("source", "kernel", "registers (ceiling)", "spilled bytes", "widest read, write (bits)",
           "instructions per position (ceiling)")  # fmt: skip
    for source in cuda.sources():
        table = cuda.table(source)
        counts = getattr(table, "INSTRUCTIONS", {})
        cubin, log = cuda.compiled(source, architecture)
        code = cuda.code_reader(cubin)
        found = cuda.kernels(log)
        for kernel in sorted(found, key=lambda k: (k.name, k.number, k.type)):
            key, spent = (kernel.name, kernel.number), ""
            if architecture == "sm_90" and key in counts and kernel == cuda.counted(found, key):
                positions, ceiling = counts[key]
                spent = f"{code(kernel).instructions_per_position(positions):.0f} ({ceiling:g})"
            widths = f"{code(kernel).load_bits}, {code(kernel).store_bits}"
            registers = f"{kernel.registers} ({cuda.ceilings(source, architecture)[key]})"
            row(source, f"`{kernel.label}`", registers, kernel.stack + kernel.spills, widths, spent)
    print()


def triton_table(architecture: int) -> None:
    """Every described instance of every Triton kernel."""
    if triton_aot.missing():
        print(f"{triton_aot.missing()}.\n")
        return
    header("operator", "instance", "registers (ceiling)", "spilled bytes", "shared bytes", "widest read, write (bits)",
           "instructions per element (ceiling)")  # fmt: skip
    for file in sorted(path.stem for path in FOLDER.glob("aot_*.py")):
        kernels = import_module(f".{file}", __package__).KERNELS
        for kernel, compiled in zip(kernels, triton_aot.compile_all(kernels, architecture), strict=True):
            code = compiled.sass
            spent = ""
            if kernel.elements:
                spent = f"{compiled.instructions_per_element(kernel.elements, kernel.num_warps):.1f}"
                spent += f" ({kernel.instructions:g})" if kernel.instructions else ""
            registers, widths = f"{compiled.registers} ({kernel.registers})", f"{code.load_bits}, {code.store_bits}"
            row(file[4:], f"`{kernel.short}`", registers, compiled.stack, compiled.shared, widths, spent)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="sm_90", help="sm_80, sm_90, sm_100 or sm_120 (default: %(default)s)")
    architecture = parser.parse_args().architecture
    print(f"CUDA kernels, nvcc, {architecture}\n")
    cuda_table(architecture)
    print(f"Triton kernels, ahead of time, {architecture}\n")
    triton_table(int(architecture.removeprefix("sm_")))


if __name__ == "__main__":
    main()
