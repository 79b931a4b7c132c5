"""What Triton's compiler makes of every kernel described in aot_*.py, without a GPU, held to the ceilings there."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from .triton_aot import PACKAGE, AotKernel, Compiled, compile_all, missing

FILES = sorted(path.stem for path in Path(__file__).parent.glob("aot_*.py"))

compiles = pytest.mark.skipif(bool(missing()), reason=missing() or "all is here")


def kernels(file: str) -> list[AotKernel]:
    return import_module(f".{file}", __package__).KERNELS


def faults(kernel: AotKernel, compiled: Compiled) -> list[str]:
    """What is wrong with a kernel, each with its figure."""
    code = compiled.sass
    per_element = compiled.instructions_per_element(kernel.elements, kernel.num_warps) if kernel.elements else 0.0
    tests = {
        f"spills: {compiled.stack} bytes of stack, {code.local_memory} LDL and STL": compiled.stack > kernel.stack
        or (code.local_memory > 0 and not kernel.stack),
        f"{compiled.registers} registers > {kernel.registers}": not 0 < compiled.registers <= kernel.registers,
        f"reads at most {code.load_bits} bits at once < {kernel.load_bits}": code.load_bits < kernel.load_bits,
        f"writes at most {code.store_bits} bits at once < {kernel.store_bits}": code.store_bits < kernel.store_bits,
        f"{per_element:.1f} instructions per element > {kernel.instructions}": per_element > kernel.instructions > 0,
    }
    return [text for text, wrong in tests.items() if wrong]


@compiles
@pytest.mark.parametrize("file", FILES)
def test_the_first_kernel_stays_below_its_ceilings(file):
    kernel = kernels(file)[0]
    assert not faults(kernel, compile_all([kernel])[0])


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_kernel_stays_below_its_ceilings(file):
    described = kernels(file)
    assert described, f"{file} describes no kernel"
    found = {k.label: faults(k, c) for k, c in zip(described, compile_all(described), strict=True)}
    assert len(found) == len(described), f"{file} describes a kernel twice"
    assert not {label: wrong for label, wrong in found.items() if wrong}


def launched(file: Path) -> set[str]:
    """The kernels that a module launches, `name[grid](...)`, as "module:name" of where they are defined."""
    own = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    tree = ast.parse(file.read_text())
    modules = {node.name: own for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = own.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            modules |= {name.asname or name.name: source for name in node.names}
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    subscripted = (func.value for func in calls if isinstance(func, ast.Subscript))
    names = {value.id for value in subscripted if isinstance(value, ast.Name)}
    return {f"{modules[name]}:{name}" for name in names if name in modules}


def test_every_kernel_that_is_launched_is_described():
    found = set().union(*map(launched, PACKAGE.rglob("triton*.py")))
    described = {kernel.kernel for file in FILES for kernel in kernels(file)}
    assert found == described
    assert len(found) > 15


@compiles
def test_the_gates_see_what_is_wrong():
    kernel = "triton_planted:sorted_sums"
    pointers = {"x": "*fp32", "y": "*fp32"}
    good = AotKernel(kernel, pointers, {"stride": 1, "SIZE": 1024}, 64, elements=1024, instructions=30.0)
    strided = AotKernel(kernel, {**pointers, "stride": "i32"}, {"SIZE": 1024}, 64)
    spilling = AotKernel(kernel, pointers, {"stride": 1, "SIZE": 8192}, 255, num_warps=1)
    fine, narrow, full = compile_all([good, strided, spilling])
    assert fine.shared > 0 and not faults(good, fine)
    assert {text.split()[0] for text in faults(strided, narrow)} == {"reads", "writes"}
    assert faults(spilling, full)[0].startswith("spills: ")
    assert "instructions per element > 1.0" in faults(replace(good, instructions=1.0), fine)[0]
    assert "registers > 8" in faults(replace(good, registers=8), fine)[0]
