"""The pooled scan against its definition in float64: outputs and every gradient, for every backend, type and layout."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from vmamba_kernels import native, pool_tokens, pooled_scan, selective_scan

from .pooled_scan_cases import (
    BACKENDS,
    INTERPRETED,
    LAYOUTS,
    Case,
    exact,
    lay_out,
    needs_cpu_library,
    needs_triton,
    ours,
)
from .selective_scan_cases import assert_close

CASES = [
    Case(),
    Case(grid=(3, 7), pooled_axes=(0,), width=17, d_state=1),
    Case(average=False, d_state=3, reverse=(True, False)),
    Case(grid=(3, 4, 2), pooled_axes=(1,), reverse=(True, True)),
    Case(grid=(3, 2, 2), pooled_axes=(0, 2), width=5, shared=5),
    Case(grid=(2, 3, 2), pooled_axes=(0, 1), groups=1, reverse=(True,), optional=False),
    Case(grid=(4, 1), groups=3, reverse=(False, True, False), average=False, width=4, shared=2),
    Case(grid=(1, 6), width=3, softplus=False),
    Case(skip=False, batch=1, groups=1, reverse=(False,)),
]
LONG = [
    Case(grid=(70, 2), width=40, d_state=1, batch=1),
    Case(grid=(2, 67), pooled_axes=(0,), width=33, d_state=16, batch=1, average=False),
    Case(grid=(130, 1), width=8, d_state=40, batch=1, groups=1, reverse=(True,)),
]


def combined(layouts, cases):
    """Every backend, layout and case; of the interpreted kernels each case in one layout, and the first two at once."""
    return [
        pytest.param(
            run.values[0],
            layout,
            case,
            id=f"{run.id}-{layout}-{case}",
            marks=[*run.marks, pytest.mark.slow] if run.id == "cpu-triton" and j > 1 else run.marks,
        )
        for run in BACKENDS
        for i, layout in enumerate(layouts)
        for j, case in enumerate(cases)
        if run.id != "cpu-triton" or i == j % len(layouts)
    ]


TYPES = [(torch.float32, 4e-6), (torch.bfloat16, 6e-3), (torch.float16, 8e-4)]


@pytest.mark.parametrize(("run", "layout", "case"), combined(LAYOUTS, CASES))
def test_outputs_and_gradients(run, layout, case):
    device, backend = run
    tensors = case.tensors(layout=layout, device=device)
    assert_close(ours(case, tensors, backend), exact(case, tensors), 4e-6)


@pytest.mark.parametrize(("run", "layout", "case"), combined(LAYOUTS[:2], CASES[:3]))
@pytest.mark.parametrize(("dtype", "bound"), TYPES[1:])
@pytest.mark.parametrize("out_low", [False, True])
def test_half_types(run, out_low, layout, dtype, bound, case):
    device, backend = run
    tensors = case.tensors(dtype, layout, device)
    got = ours(case, tensors, backend, out_dtype=dtype if out_low else None)
    assert got["y"].dtype is (dtype if out_low else torch.float32)
    assert got["du_full"].dtype is dtype and got["dA"].dtype is torch.float32
    assert_close(got, exact(case, tensors), bound)


@pytest.mark.parametrize(
    ("run", "layout", "case"), [p for p in combined(LAYOUTS[:2], LONG) if "cpu-triton" not in p.id]
)
def test_across_chunks(run, layout, case):
    device, backend = run
    tensors = case.tensors(layout=layout, device=device)
    assert_close(ours(case, tensors, backend), exact(case, tensors), 6e-6)


@needs_triton
@pytest.mark.skipif(not INTERPRETED, reason="with a GPU test_across_chunks runs Triton")
def test_triton_across_chunks(monkeypatch):
    kernels = import_module("vmamba_kernels.pooled_scan.triton")
    monkeypatch.setattr(kernels, "chunk_length", lambda *_: 4)
    monkeypatch.setattr(kernels, "stored_states", lambda steps, *_: (steps + 3) // 4 - 1)
    case = Case(grid=(10, 2), width=5, batch=1)
    tensors = case.tensors()
    assert_close(ours(case, tensors, "triton"), exact(case, tensors), 4e-6)


@needs_cpu_library
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set(isa, dtype):
    case = Case(width=37)
    try:
        with native.use_cpu_isa(isa):
            for layout in LAYOUTS[:2]:
                tensors = case.tensors(dtype, layout)
                assert_close(ours(case, tensors, "cpu"), exact(case, tensors), dict(TYPES)[dtype])
    except ValueError as absent:
        pytest.skip(f"{isa}: {absent}")


@needs_cpu_library
def test_threads_do_not_change_a_bit():
    case = Case(grid=(14, 9), width=96, d_state=16, batch=3)
    for layout in LAYOUTS[:2]:
        tensors = case.tensors(layout=layout)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = ours(case, tensors, "cpu")
            torch.set_num_threads(2)
            two = ours(case, tensors, "cpu")
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("run", BACKENDS)
def test_layouts_of_the_result_and_groups_that_lie_apart(run):
    device, backend = run
    case = Case(average=False)
    for layout, last in (("channel_last", True), ("channel_first", False)):
        tensors = case.tensors(layout=layout, device=device)
        y = pooled_scan(*tensors, **case.options(), backend=backend)
        assert (y.stride(1) == 1) == last and y.shape == tensors[0].shape
        parts = [lay_out(part, layout) for part in tensors[0].tensor_split(2, 1)]
        apart = torch.stack([p.movedim(-1, 1) for p in parts]).movedim(0, 1).movedim(2, -1)
        assert apart.shape == (2, 2, 9, 15) and not apart.is_contiguous()
        torch.testing.assert_close(pooled_scan(apart, *tensors[1:], **case.options(), backend=backend), y)


@pytest.mark.parametrize("run", BACKENDS)
def test_a_gradient_in_another_layout(run):
    device, backend = run
    case = Case()
    tensors = [x.requires_grad_() for x in case.tensors(device=device)]
    y = pooled_scan(*tensors, **case.options(), backend=backend)
    dy = torch.randn(y.shape, device=device)
    expected = torch.autograd.grad(y, tensors, lay_out(dy, "channel_last"), retain_graph=True)
    for odd in (lay_out(dy, "channel_first"), lay_out(dy, "strided")):
        for got, want in zip(torch.autograd.grad(y, tensors, odd, retain_graph=True), expected):
            torch.testing.assert_close(got, want)
    (ones,) = torch.autograd.grad(y.sum(), tensors[0])
    weights = (tensors[6].view(2, -1, 1).expand(-1, -1, 15) / 2).flatten(0, 1)
    torch.testing.assert_close(ones, weights.expand_as(ones))


@pytest.mark.parametrize("run", BACKENDS)
def test_one_token_a_step_is_a_bidirectional_selective_scan(run):
    device, backend = run
    case = Case(grid=(6, 1))
    u, _, *rest = case.tensors(device=device)
    delta, A, B, C, D, bias = rest
    y = pooled_scan(u, u, *rest, **case.options(), backend=backend)
    half = 9
    forward = selective_scan(u[:, :half], delta[:, :half], A[:half], B[:, :1], C[:, :1], D[:half], bias[:half])
    turned = [x.flip(-1) for x in (u[:, half:], delta[:, half:], B[:, 1:], C[:, 1:])]
    back = selective_scan(turned[0], turned[1], A[half:], turned[2], turned[3], D[half:], bias[half:]).flip(-1)
    torch.testing.assert_close(y, (forward + back) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run", BACKENDS)
def test_without_gradients_and_empty_batches(run):
    device, backend = run
    case = Case()
    tensors = [x.requires_grad_() for x in case.tensors(device=device)]
    expected = pooled_scan(*tensors, **case.options(), backend=backend)
    with torch.inference_mode():
        assert torch.equal(pooled_scan(*tensors, **case.options(), backend=backend), expected)
    empty = Case(batch=0)
    values = ours(empty, empty.tensors(device=device), backend)
    assert values["y"].shape == (0, 9, 15) and values["dA"].abs().sum() == 0 and values["dD"].abs().sum() == 0


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("case", [Case(), Case(average=False, shared=3), Case(skip=False)], ids=str)
def test_every_output_is_written(run, layout, case):
    device, backend = run
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all(), "uninitialised memory is not poisoned"
        values = ours(case, case.tensors(layout=layout, device=device), backend)
        assert not any(value.isnan().any() for value in values.values())
    finally:
        torch.use_deterministic_algorithms(False)


PLANES = [((4, 6), -1), ((4, 6), 0), ((5, 1), 0), ((5, 1), 1), ((1, 5), 0), ((1, 5), 1)]


@pytest.mark.parametrize("beside", ["tokens", "channels"])
@pytest.mark.parametrize(("grid", "axes"), [*PLANES, ((2, 3, 4), (1,)), ((2, 3, 4), (0, 2))])
def test_pooling(grid, axes, beside):
    u = torch.randn(2, 3, *grid, dtype=torch.float64)
    if beside == "channels":
        u = u.movedim(1, -1).contiguous().movedim(-1, 1)
    assert (u.flatten(2).stride(-2) == 1) == (beside == "channels")
    u.requires_grad_()
    dims = tuple(d % len(grid) + 2 for d in ((axes,) if isinstance(axes, int) else axes))
    for reduce, plain in (("mean", torch.mean), ("max", torch.amax)):
        got = pool_tokens(u.flatten(2), grid, axes, reduce=reduce, scale=0.25)
        torch.testing.assert_close(got, 0.25 * plain(u, dims).flatten(2))
    assert torch.autograd.gradcheck(lambda x: pool_tokens(x.flatten(2), grid, axes), u)
    low = pool_tokens(u.detach().flatten(2).bfloat16(), grid, axes)
    assert torch.equal(low, u.detach().bfloat16().double().mean(dims).flatten(2).bfloat16())


def test_pooling_refuses_bad_input():
    u = torch.randn(2, 3, 12)
    with pytest.raises(ValueError, match="reduce: expected 'mean' or 'max', got 'sum'"):
        pool_tokens(u, (3, 4), reduce="sum")
    with pytest.raises(ValueError, match=r"grid: expected 12 tokens as in u_full, got \(3, 5\) of 15"):
        pool_tokens(u, (3, 5))
