"""What nvcc makes of every CUDA source, without a GPU: no spills, few registers, wide copies, few instructions.

`make test` compiles two kernels, cuda_sample.cu, for every architecture; `make kernel-gates` all.
"""

from __future__ import annotations

import pytest

from . import sass
from .cuda_compiled import (
    ARCHITECTURES,
    NVCC,
    Kernel,
    ceilings,
    code_reader,
    compiled,
    counted,
    kernels,
    sources,
    table,
)

CASES = [pytest.param(s, a, marks=pytest.mark.slow, id=f"{s}-{a}") for a in ARCHITECTURES for s in sources()]
ON_HOPPER = [case for case in CASES if case.values[1] == "sm_90"]


def compile_or_skip(source: str, architecture: str, reads_code: bool = False):
    if NVCC is None:
        pytest.skip(f"no nvcc: {source}.cu is not compiled for {architecture}")
    if reads_code and sass.find_tool() is None:
        pytest.skip(f"no cuobjdump: the machine code of {source}.cu is not read")
    return compiled(source, architecture)


def has_atomics(function: sass.Function) -> bool:
    return function.count("ATOM", "ATOMG", "ATOMS", "RED", "REDG") > 0


def test_every_source_has_a_table():
    assert "selective_scan" in sources()
    for source in sources():
        assert table(source).CEILINGS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sample_stays_below_its_ceilings(architecture):
    found = kernels(compile_or_skip("cuda_sample", architecture)[1])
    most = ceilings("ss2d", architecture)
    assert sorted((k.name, k.number, k.type) for k in found) == [
        ("ss2d_backward", 1, "bf16"),
        ("ss2d_forward", 1, "bf16"),
    ]
    assert all(k.registers <= most[k.name, k.number] and not k.spills and not k.stack for k in found), found


def test_the_sample_reads_wide_pieces_and_no_local_memory():
    cubin, log = compile_or_skip("cuda_sample", "sm_90", reads_code=True)
    code, bits = code_reader(cubin), table("ss2d").LOAD_BITS
    for kernel in kernels(log):
        function = code(kernel)
        assert function.load_bits >= bits[kernel.name], f"{kernel.label} reads {function.load_bits} bits at most"
        assert not function.local_memory and has_atomics(function) == (kernel.name in table("ss2d").ATOMICS), (
            kernel.label
        )


@pytest.mark.parametrize("source, architecture", CASES)
def test_no_kernel_spills_and_registers_stay_below_their_ceilings(source, architecture):
    found = kernels(compile_or_skip(source, architecture)[1])
    most = ceilings(source, architecture)
    assert {(k.name, k.number) for k in found} == set(most)
    assert len(found) == table(source).INSTANCES
    spilled = getattr(table(source), "SPILLS", {})
    assert not [k for k in found if k.registers > most[k.name, k.number]]
    assert not [k for k in found if max(k.spills, k.stack) > spilled.get((architecture, k.name), 0)]


@pytest.mark.parametrize("source, architecture", ON_HOPPER)
def test_memory_is_read_and_written_in_wide_pieces(source, architecture):
    cubin, log = compile_or_skip(source, architecture, reads_code=True)
    code, limits = code_reader(cubin), table(source)
    loads, stores = getattr(limits, "LOAD_BITS", {}), getattr(limits, "STORE_BITS", {})
    found = kernels(log)
    assert {*loads, *stores} <= {k.name for k in found}
    for kernel in found:
        function = code(kernel)
        assert function.local_memory == 0, f"{kernel.label} uses local memory"
        assert function.load_bits >= loads.get(kernel.name, 0), (
            f"{kernel.label} reads {function.load_bits} bits at most"
        )
        assert function.store_bits >= stores.get(kernel.name, 0), f"{kernel.label} writes {function.store_bits} at most"
        assert has_atomics(function) == (kernel.name in getattr(limits, "ATOMICS", ())), f"{kernel.label}: atomics"


@pytest.mark.parametrize("source, architecture", ON_HOPPER)
def test_instructions_per_position_stay_below_their_ceilings(source, architecture):
    cubin, log = compile_or_skip(source, architecture, reads_code=True)
    code, found = code_reader(cubin), kernels(log)
    for key, (positions, ceiling) in getattr(table(source), "INSTRUCTIONS", {}).items():
        spent = code(counted(found, key)).instructions_per_position(positions)
        assert spent <= ceiling, f"{key}: {spent:.1f} instructions per position"


LISTING = """
        Function : _ZN6vmamba4cuda4scanEv
        /*0000*/                   MOV R1, c[0x0][0x28] ;          /* 0x1 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ; /* 0x1 */
        /*0020*/                   MUFU.EX2 R3, R4 ;               /* 0x1 */
        /*0030*/                   MUFU.EX2 R3, R4 ;               /* 0x1 */
        /*0040*/               @P0 BRA 0x30 ;                      /* 0x1 */
        /*0050*/                   STG.E.U16 [R2.64], R4 ;         /* 0x1 */
        /*0060*/               @P1 BRA 0x10 ;                      /* 0x1 */
        /*0070*/                   EXIT ;                          /* 0x1 */
        /*0080*/                   BRA 0x80;                       /* 0x1 */
        /*0090*/                   NOP;                            /* 0x1 */
"""


def test_machine_code_is_read_right():
    (function,) = sass.parse(LISTING).values()
    assert len(function.instructions) == 8 and function.instructions[1].predicate == "@!P0"
    assert (function.load_bits, function.store_bits, function.local_memory) == (128, 16, 0)
    assert function.loops("MUFU.EX2") == [(1, 6), (3, 4)]
    assert function.instructions_per_position((4, 2)) == 4 / 4 + 2 / 2
    assert function.instructions_per_position(4) == 8 / 4
    with pytest.raises(ValueError, match="1 numbers for 2 loops with an exponential: 6 instructions from 0x10, 2"):
        function.instructions_per_position((4,))
    spilling = LISTING.replace("MUFU.EX2 R3, R4", "STL.64 [R1], R4")
    (function,) = sass.parse(spilling).values()
    assert function.local_memory == 2 and function.instructions_per_position((8,)) == 1


@pytest.mark.parametrize(
    "mangled, name, number, kind",
    [
        ("_ZN6vmamba4cuda13scan_backwardINS0_7Float16ELi2EEEvNS0_8BackwardE", "scan_backward", 2, "f16"),
        ("_ZN6vmamba4cuda12scan_forwardINS0_8BFloat16ELi16ELb1EEEvNS0_7ForwardE", "scan_forward", 16, "bf16"),
        ("_ZN6vmamba4cuda12scan_forwardIfLi1EEEvNS0_7ForwardE", "scan_forward", 1, "f32"),
        ("_ZN6vmamba4cuda14reduce_weightsENS0_9ReductionE", "reduce_weights", 0, ""),
        ("_Z4copyI13__nv_bfloat16Evi", "copy", 0, "bf16"),
        ("_ZN6vmamba4cuda4ss2dILi1ENS0_8BFloat16EEEvNS0_9ReductionE", "ss2d", 1, "bf16"),
    ],
)
def test_names_of_kernels_are_read_right(mangled, name, number, kind):
    log = (
        f"Compiling entry function '{mangled}' for 'sm_90'\n 8 bytes stack frame, 4 bytes spill stores, 12 bytes spill"
    )
    (kernel,) = kernels(log + " loads\nptxas info    : Used 77 registers, used 1 barriers\n")
    assert kernel == Kernel(mangled, name, number, kind, registers=77, stack=8, spills=16)
