"""causal_conv1d against torch's convolution in float64: every backend, type, storage, direction and size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vmamba_kernels import causal_conv1d, native

from .causal_conv1d_cases import BACKENDS, BF16, CPU, F16, F32, LAYOUTS, REFERENCE, Case, assert_close, exact, results

BOTH = (False, True)
SIZES = [
    Case(),
    Case(reverse=(True,)),
    Case(reverse=BOTH),
    Case(reverse=BOTH, flip=True),
    Case(reverse=BOTH, own=True, flip=True, batch=1),
    Case(reverse=(True, False, True), silu=False, bias=False),
    Case(reverse=BOTH, length=1),
    Case(reverse=BOTH, length=2, flip=True),
    Case(reverse=BOTH, length=3, width=8, silu=False),
    Case(reverse=BOTH, length=70, width=7, channels=5),
    Case(reverse=BOTH, length=65, width=1, channels=3),
    Case(reverse=BOTH, length=33, width=2, own=True),
    Case(length=49, width=3, bias=False, channels=40),
    Case(batch=3, channels=33, length=37, reverse=BOTH),
]


# What the interpreter of Triton computes in the budget of `make test`; the rest of it is slow.
INTERPRETED = {(3, "channel_last"), (4, "channel_first"), (5, "strided"), (8, "channel_first"), (11, "sliced")}


def _every_way() -> list:
    ways = []
    for run in BACKENDS:
        for i, case in enumerate(SIZES):
            for layout in LAYOUTS:
                slow = run.values[0] == ("cpu", "triton") and (i, layout) not in INTERPRETED
                marks = [*run.marks, *([pytest.mark.slow] if slow else [])]
                ways.append(pytest.param(run.values[0], layout, case, id=f"{run.id}-{layout}-{case}", marks=marks))
    return ways


@pytest.mark.parametrize("run, layout, case", _every_way())
def test_values_and_gradients(run, layout, case):
    device, backend = run
    tensors = case.tensors(F32, layout, device)
    assert_close(results(lambda t: case.call(t, backend), tensors), exact(case, tensors))


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_types(run, layout, dtype):
    device, backend = run
    interpreted = (device, backend) == ("cpu", "triton")
    if interpreted and (layout == "sliced" or dtype is F16 and layout != "channel_last"):
        pytest.skip("the interpreter takes its time; the other storages show the same")
    cases = [Case(batch=3, channels=40, length=50, reverse=BOTH), Case(length=35, reverse=(True,), flip=True, width=5),
             Case(reverse=BOTH, own=True, length=19, silu=False)]  # fmt: skip
    for case in cases[1:2] if interpreted else cases:
        tensors = case.tensors(dtype, layout, device)
        ours = results(lambda t, case=case: case.call(t, backend), tensors)
        assert ours["y"].dtype is dtype and ours["dx"].dtype is dtype and ours["dweight"].dtype is F32
        assert_close(ours, exact(case, tensors))


@pytest.mark.parametrize("run", [REFERENCE, CPU])
@pytest.mark.parametrize("channels, length", [(384, 197), (192, 100), (520, 64)])
def test_wide_and_long(run, channels, length):
    device, backend = run
    case = Case(batch=2, channels=channels, length=length, reverse=BOTH, flip=True)
    for dtype, layout in ((F32, "channel_last"), (BF16, "channel_first")):
        tensors = case.tensors(dtype, layout, device)
        assert_close(results(lambda t: case.call(t, backend), tensors), exact(case, tensors))


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(isa):
    if native.load("cpu").reason:
        pytest.skip(native.load("cpu").reason)
    try:
        with native.use_cpu_isa(isa):
            for case in (Case(channels=70, length=40, reverse=BOTH), Case(channels=9, width=3, silu=False)):
                for dtype in (F32, BF16, F16):
                    tensors = case.tensors(dtype)
                    ours = results(lambda t, case=case: case.call(t, "cpu"), tensors)
                    assert_close(ours, exact(case, tensors))
    except ValueError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("run", BACKENDS)
def test_it_is_torchs_convolution(run):
    device, backend = run
    conv = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3).to(device)
    x = torch.randn(2, 6, 11, device=device)
    y = causal_conv1d(x, conv.weight, conv.bias, "swish", backend=backend)
    torch.testing.assert_close(y, F.silu(conv(x)[..., :11]), rtol=2e-5, atol=2e-6)
    mirrored = causal_conv1d(x, conv.weight, conv.bias, reverse=True, backend=backend)
    torch.testing.assert_close(mirrored, conv(x.flip(-1))[..., :11].flip(-1), rtol=2e-5, atol=2e-6)
    own_time = causal_conv1d(x, conv.weight, conv.bias, reverse=True, flip_output=True, backend=backend)
    assert torch.equal(own_time, mirrored.flip(-1))


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_output_is_written(run, layout):
    device, backend = run
    if (device, backend) == ("cpu", "triton") and layout in ("sliced", "strided"):
        pytest.skip("the interpreter takes its time; the other storages show the same")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3, device=device).isnan().all(), "uninitialised memory is not poisoned"
        for case in (Case(channels=13, length=39, reverse=BOTH, flip=True), Case(channels=8, length=2, own=True)):
            ours = results(lambda t, case=case: case.call(t, backend), case.tensors(F32, layout, device))
            assert not any(value.isnan().any() for value in ours.values())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("layout", ["channel_last", "channel_first"])
def test_not_a_number_reaches_what_reads_it_and_nothing_else(run, layout):
    device, backend = run
    for width in (3,) if (device, backend) == ("cpu", "triton") else (4, 3):
        case = Case(batch=1, channels=9, length=30, width=width, reverse=BOTH)
        tensors = case.tensors(F32, layout, device)
        tensors[0][0, 3, 12] = float("nan")
        y = case.call(tensors, backend).cpu().isnan()
        expected = torch.zeros_like(y)
        expected[0, 3, 12 : 12 + width] = True
        expected[0, 9 + 3, 12 - width + 1 : 13] = True
        assert torch.equal(y, expected)
        gradients = results(lambda t, case=case: case.call(t, backend), tensors)
        dx, dweight, dbias = (gradients[name].cpu().isnan() for name in ("dx", "dweight", "dbias"))
        assert dx[0, 3].any() and not dx[0, [0, 1, 2, 4, 8]].any()
        assert dweight[:, 3].all() and dbias[:, 3].all() and dweight.sum() == 2 * width and dbias.sum() == 2


@pytest.mark.parametrize("run", BACKENDS)
def test_large_sums_saturate(run):
    device, backend = run
    x = torch.tensor([-200.0, -90.0, -20.0, 20.0, 90.0, 200.0], device=device).view(1, 1, 6)
    leaf = x.requires_grad_()
    y = causal_conv1d(leaf, torch.ones(1, 1, device=device), None, "silu", backend=backend)
    y.sum().backward()
    want = x.detach().double().requires_grad_()
    F.silu(want).sum().backward()
    torch.testing.assert_close(y.detach().double(), F.silu(want.detach()), rtol=1e-6, atol=1e-30)
    torch.testing.assert_close(leaf.grad.double(), want.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("run", BACKENDS)
def test_two_runs_are_bit_equal_whatever_the_threads(run):
    device, backend = run
    case = Case(batch=3, channels=160, length=100, reverse=BOTH)
    if (device, backend) == ("cpu", "triton"):
        case = Case(batch=1, channels=5, length=20)
    tensors = case.tensors(F32, "channel_last", device)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = results(lambda t: case.call(t, backend), tensors)
        torch.set_num_threads(2)
        second = results(lambda t: case.call(t, backend), tensors)
    finally:
        torch.set_num_threads(threads)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
