"""The CPU library: every instruction set, any number of threads, the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from vmamba_kernels import native

from .selective_scan_cases import LAYOUTS, Case, assert_close, exact, needs_cpu_library, scan

pytestmark = needs_cpu_library

CASES = [
    Case(),
    Case(group_channels=96, batch=1, groups=1, length=130),
    Case(d_state=16, group_channels=40, length=66),
    Case(d_state=9, group_channels=5),
    Case(d_state=2, shared=2, softplus=False),
]


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request):
    try:
        with native.use_cpu_isa(request.param):
            assert native.cpu_isa() == request.param
            yield request.param
    except ValueError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_instruction_set_is_right(isa, layout, case):
    tensors = case.tensors(layout=layout)
    assert_close(scan(tensors, "cpu", delta_softplus=case.softplus), exact(tensors, case.softplus), 3e-6)


def pass_through(u: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """u [B, KD, L] widened to float32 and narrowed to dtype by the kernels: with B = C = 0 and D = 1 they return it."""
    channels, length = u.shape[1:]
    nothing = torch.zeros(1, 1, 1, length, dtype=u.dtype)
    A, D = -torch.ones(channels, 1), torch.ones(channels)
    return torch.ops.vmamba.selective_scan(u, torch.zeros_like(u), A, nothing, nothing, D, None, True, dtype, False)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_instruction_set_rounds_narrow_types_like_pytorch(isa, dtype):
    special = [0.0, -0.0, 1.0, 65504.0, 65519.0, 65520.0, 1e5, -1e30, 6e-8, 2e-8, 2.98e-8, 6.1e-5, -3e-6, 1.00390625,
               1.01171875, 1.00048828125, 3.3895e38, 3.4e38]  # fmt: skip
    make = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 1e-5, 1e-7, 1e4])[:, None]
    values = torch.cat([torch.tensor(special), (torch.randn(4, 300, generator=make) * scales).flatten()])
    values = values[: len(values) // 24 * 24].view(1, 24, -1)
    for u in (values, values.transpose(1, 2).contiguous().transpose(1, 2)):
        rounded = u.to(dtype)
        assert torch.equal(pass_through(u, dtype), rounded)
        readable = torch.where(rounded.isfinite(), rounded, 0)
        assert torch.equal(pass_through(readable, torch.float32), readable.float())
        assert torch.equal(pass_through(readable, dtype), readable)
    nans = torch.full((1, 24, 9), float("nan"))
    assert pass_through(nans, dtype).isnan().all() and pass_through(nans.to(dtype), torch.float32).isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case",
    [Case(1, 4, 96, 1, 100), Case(2, 2, 50, 16, 70), Case(3, 1, 8, 3, 200), Case(1, 2, 64, 1, 80, 4)],
    ids=str,
)
def test_the_number_of_threads_changes_no_bit(layout, case):
    tensors = case.tensors(layout=layout)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(scan(tensors, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_an_environment_variable_chooses_the_instruction_set():
    code = "from vmamba_kernels import native; print(native.cpu_isa())"
    environment = {**os.environ, "VMAMBA_CPU_ISA": "portable", "PYTHONPATH": str(native.FOLDER.parent)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "portable"


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="instruction set 'mmx' is not available"):
        with native.use_cpu_isa("mmx"):
            pass
