"""Values and gradients of ssd, for every backend, against a sequential scan in float64 and the selective scan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vmamba_kernels import selective_scan, selective_scan_chunk_fn, ssd

from .selective_scan_cases import assert_close, relative_error
from .ssd_cases import BACKENDS, CHUNKED, CUDA, REFERENCE, TRITON, Case, exact, scan

PLAIN = [REFERENCE, CHUNKED, *CUDA]
SMALL = Case(batch=1, length=19, heads=2, width=3, groups=1)
SHAPES = [
    *(Case(length=length) for length in (1, 2, 63, 64, 65, 130)),
    Case(optional=False),
    Case(softplus=False, optional=False),
    Case(dt_limit=(0.2, 0.7)),
    Case(batch=1, heads=1, width=1, groups=1, d_state=1),
    Case(batch=1, heads=6, width=16, groups=1, d_state=64, length=66),
    Case(batch=1, heads=2, width=7, groups=2, d_state=256, length=20),
    Case(batch=1, heads=4, width=40, groups=4, d_state=17, length=70),
]
# On the interpreter each program costs milliseconds: one case for each branch of the kernels.
TILED = [
    Case(batch=1, length=70, heads=4, width=3, groups=2),
    Case(batch=2, length=18, heads=2, width=20, groups=1, d_state=35),
    Case(batch=1, length=3, optional=False, heads=3, groups=3),
    replace(SMALL, softplus=False, optional=False),
    replace(SMALL, dt_limit=(0.2, 0.7)),
]


@pytest.mark.parametrize("run", PLAIN)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_float32_matches_float64(run, case: Case) -> None:
    device, backend = run
    tensors = case.tensors(device=device)
    ours = scan(tensors, backend, **case.options)
    assert ours["y"].dtype is torch.float32
    assert_close(ours, exact(tensors, **case.options), 5e-6)


@pytest.mark.parametrize("run", [TRITON, *CUDA])
@pytest.mark.parametrize("case", TILED, ids=str)
def test_the_kernels_match_float64(run, case: Case) -> None:
    device, backend = run
    tensors = case.tensors(device=device)
    assert_close(scan(tensors, backend, **case.options), exact(tensors, **case.options), 3e-6)


@pytest.mark.parametrize("run", [TRITON, *CUDA])
@pytest.mark.parametrize("enough", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_programs_that_take_several_heads_of_a_group(run, enough: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmamba_kernels.ssd import triton

    device, backend = run
    monkeypatch.setattr(triton, "_ENOUGH_PROGRAMS", enough)
    tensors = replace(SMALL, heads=4).tensors(device=device)
    assert_close(scan(tensors, backend), exact(tensors), 3e-6)


@pytest.mark.parametrize("run", [CHUNKED, *CUDA])
def test_float64_is_exact(run) -> None:
    device, backend = run
    tensors = Case(length=70).tensors(torch.float64, device)
    assert_close(scan(tensors, backend, chunk_size=16), exact(tensors), 1e-13)
    assert torch.equal(ssd(*tensors), ssd(*tensors, backend="chunked"))


@pytest.mark.parametrize("run", [CHUNKED, *CUDA])
@pytest.mark.parametrize("chunk", [1, 7, 16, 36, 37, 1000])
def test_the_chunk_changes_rounding_only(run, chunk: int) -> None:
    device, backend = run
    tensors = Case().tensors(device=device)
    assert_close(scan(tensors, backend, chunk_size=chunk), exact(tensors), 3e-6)


@pytest.mark.parametrize("run", [TRITON])
def test_the_chunk_changes_rounding_only_in_the_kernels(run) -> None:
    tensors = SMALL.tensors(device=run[0])
    assert_close(scan(tensors, run[1], chunk_size=5), exact(tensors), 3e-6)


@pytest.mark.parametrize("run", [CHUNKED, *CUDA])
def test_slabs_of_any_size_give_the_same(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmamba_kernels.ssd import chunked

    device, backend = run
    tensors = Case(batch=3, length=50).tensors(device=device)
    expected = exact(tensors)
    for elements in (1, 3 * 4 * 64, 1 << 30):
        monkeypatch.setattr(chunked, "_AT_ONCE", dict.fromkeys(("cpu", "cuda"), elements))
        assert_close(scan(tensors, backend, chunk_size=8), expected, 3e-6)


@pytest.mark.parametrize("run", BACKENDS)
def test_equals_the_selective_scan_with_A_shared_over_a_head(run) -> None:
    device, backend = run
    case = SMALL if backend == "triton" else Case()
    x, dt, A, B, C, D, bias, _ = case.tensors(device=device)
    N = case.d_state

    def selective(x, dt, A, B, C, D, bias):
        u = x.flatten(2).transpose(1, 2)
        delta = dt.repeat_interleave(case.width, 2).transpose(1, 2)
        wide_A = A[:, None].expand(-1, case.width).flatten()[:, None].expand(-1, N)
        y = selective_scan(
            u, delta, wide_A, B.permute(0, 2, 3, 1), C.permute(0, 2, 3, 1), D.flatten(),
            bias.repeat_interleave(case.width), backend="reference",
        )  # fmt: skip
        return y.transpose(1, 2).unflatten(2, x.shape[2:])

    def ours(*tensors):
        return ssd(*tensors, backend=backend)

    found = []
    for function in (ours, selective):
        leaves = [t.detach().requires_grad_() for t in (x, dt, A, B, C, D, bias)]
        y = function(*leaves)
        weights = torch.linspace(-1, 1, y.numel(), device=device).view_as(y)
        found.append([y, *torch.autograd.grad((y * weights).sum(), leaves)])
    for name, a, b in zip(("y", "dx", "ddt", "dA", "dB", "dC", "dD", "ddt_bias"), *found):
        assert relative_error(a, b) <= 3e-6, name


def in_half(run, dtype: torch.dtype, float_out: bool):
    name = f"{run.id}-{str(dtype)[6:]}-{'float32' if float_out else 'same'}_out"
    return pytest.param(run.values[0], dtype, float_out, id=name, marks=run.marks)


HALF_TYPES = [(dtype, out) for dtype in (torch.bfloat16, torch.float16) for out in (True, False)]
IN_HALF = [in_half(run, *types) for run in PLAIN for types in HALF_TYPES] + [in_half(TRITON, torch.bfloat16, False)]


@pytest.mark.parametrize("run, dtype, float_out", IN_HALF)
def test_low_precision_is_no_worse_than_twice_the_reference(run, dtype: torch.dtype, float_out: bool) -> None:
    device, backend = run
    tensors = SMALL.tensors(dtype, device)
    out_dtype = torch.float32 if float_out else dtype
    ours, reference = scan(tensors, backend, out_dtype=out_dtype), scan(tensors, "reference", out_dtype=out_dtype)
    expected = exact(tensors)
    assert ours["y"].dtype is out_dtype and ours["last_state"].dtype is torch.float32
    for name, value in ours.items():
        assert value.dtype is reference[name].dtype, name
        error, bound = relative_error(value, expected[name]), relative_error(reference[name], expected[name])
        assert error <= 2 * bound + 2e-6, f"{name}: {error:.2e} against {bound:.2e} of the reference"


@pytest.mark.parametrize("run", BACKENDS)
def test_softplus_around_its_threshold_and_far_below_zero(run) -> None:
    device, backend = run
    steps = torch.tensor([-60.0, -15.0, -1e-3, 0.0, 19.9, 20.1, 25.0, 60.0], device=device)
    tensors = replace(SMALL, length=8, optional=False).tensors(device=device)
    tensors[1] = steps[:, None].expand(1, 8, 2).contiguous()
    assert_close(scan(tensors, backend), exact(tensors), 3e-6)
    for step in range(8):
        single = [t[:, step : step + 1] if t is not None and t.dim() > 1 else t for t in tensors]
        last = ssd(*single, return_final_states=True, backend=backend)[1]
        torch.testing.assert_close(last.cpu().double(), exact(single)["last_state"], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("run", BACKENDS)
def test_huge_decay_is_finite_and_loses_nothing_after_it(run) -> None:
    device, backend = run
    tensors = replace(SMALL, length=40, optional=False, softplus=False).tensors(device=device)
    tensors[1] = tensors[1] * 1e-3
    tensors[1][:, ::9] = 1e4
    ours, expected = scan(tensors, backend, dt_softplus=False), exact(tensors, dt_softplus=False)
    assert_close(ours, expected, 3e-6)
    tensors[2] = torch.full_like(tensors[2], -1e9)
    assert all(value.isfinite().all() for value in scan(tensors, backend).values())


def test_a_long_sequence_with_a_slow_decay() -> None:
    tensors = Case(batch=1, length=8192, heads=2, groups=1).tensors()
    tensors[2] = torch.full_like(tensors[2], -1e-3)
    wide = [t.double() for t in tensors]
    assert_close(scan(tensors, "chunked"), scan(wide, "chunked", chunk_size=16), 1e-5)


@pytest.mark.parametrize("run", PLAIN)
@pytest.mark.parametrize("position", range(8))
def test_nan_is_not_swallowed(run, position: int) -> None:
    device, backend = run
    tensors = Case(length=66).tensors(device=device)
    tensors[position][(0,) * tensors[position].dim()] = float("nan")
    ours, plain = scan(tensors, backend), scan(tensors, "reference")
    for name, value in ours.items():
        assert value.isnan().any() or not plain[name].isnan().any(), name
    assert ours["y"].isnan().any()
    if position not in (2, 5, 6):
        assert not ours["y"][1].isnan().any()


@pytest.mark.parametrize("run", BACKENDS)
def test_any_strides(run) -> None:
    device, backend = run
    case = SMALL
    tensors = case.tensors(device=device)
    tensors[0] = tensors[0].transpose(1, 3).contiguous().transpose(1, 3)
    tensors[1] = tensors[1][:, :, :1].expand(1, 19, 2)
    tensors[3] = tensors[3].flip(1)
    joined = torch.cat([tensors[4], tensors[4]], -1)
    tensors[4] = joined[..., case.d_state :]
    tensors[5] = tensors[5][:, :1].expand_as(tensors[5])
    assert_close(scan(tensors, backend), exact(tensors), 3e-6)


@pytest.mark.parametrize("run", PLAIN)
def test_skip_by_head_and_gate(run) -> None:
    device, backend = run
    x, dt, A, B, C, D, bias, first = Case().tensors(device=device)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(device)
    by_head = ssd(x, dt, A, B, C, D[:, 0], bias, first, backend=backend)
    plain = ssd(x, dt, A, B, C, None, bias, first, backend=backend)
    assert torch.allclose(by_head, plain + D[:, :1] * x, atol=1e-5)
    gated = ssd(x, dt, A, B, C, D[:, 0], bias, first, z=z, backend=backend)
    assert torch.allclose(gated, by_head * F.silu(z), atol=1e-5)
    halves = [t.bfloat16() for t in (x, dt, B, C, z)]
    y = ssd(halves[0], halves[1], A, *halves[2:4], z=halves[4], out_dtype=torch.bfloat16, backend=backend)
    assert y.dtype is torch.bfloat16


@pytest.mark.parametrize("run", PLAIN)
def test_a_sequence_in_two_parts(run) -> None:
    device, backend = run
    tensors = Case().tensors(device=device)
    y, last = ssd(*tensors, return_final_states=True, backend=backend)
    x, dt, A, B, C, D, bias, first = tensors
    head = ssd(x[:, :20], dt[:, :20], A, B[:, :20], C[:, :20], D, bias, first, return_final_states=True)
    tail = ssd(x[:, 20:], dt[:, 20:], A, B[:, 20:], C[:, 20:], D, bias, head[1], return_final_states=True)
    assert torch.allclose(torch.cat([head[0], tail[0]], 1), y, atol=2e-5)
    assert torch.allclose(tail[1], last, atol=2e-5)


@pytest.mark.parametrize("run", PLAIN)
def test_published_signature(run) -> None:
    device, backend = run
    x, dt, A, B, C, D, bias, first = Case().tensors(torch.bfloat16, device)
    y, last = selective_scan_chunk_fn(
        x, dt, A, B, C, 16, D[:, 0], None, bias, first, dt_softplus=True, return_final_states=True, backend=backend
    )
    expected = ssd(x, dt, A, B, C, D[:, 0], bias, first, chunk_size=16, out_dtype=torch.bfloat16, backend=backend)
    assert y.dtype is torch.bfloat16 and torch.equal(y, expected) and last.shape == first.shape
    without = selective_scan_chunk_fn(x, dt.abs(), A, B, C, 16, backend="torch")
    assert torch.equal(without, ssd(x, dt.abs(), A, B, C, dt_softplus=False, chunk_size=16, out_dtype=x.dtype,
                                    backend="chunked"))  # fmt: skip
