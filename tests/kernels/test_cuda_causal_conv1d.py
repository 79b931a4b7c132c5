"""The causal convolution on a GPU beyond what every backend is tested for: real shapes, streams, large tensors."""

from __future__ import annotations

import pytest
import torch

from vmamba_kernels import causal_conv1d

from .causal_conv1d_cases import BF16, CUDA, F16, F32, TRITON, Case, assert_close, exact, results

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BOTH = (False, True)
RUNS = [CUDA, TRITON]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layout", ["channel_last", "channel_first", "sliced"])
@pytest.mark.parametrize("channels, length", [(384, 197), (768, 196), (1536, 50), (130, 1030), (7, 4097)])
def test_shapes_of_backbones(run, layout, channels, length):
    device, backend = run
    for dtype, flip in ((BF16, True), (F32, False), (F16, False)):
        case = Case(batch=3, channels=channels, length=length, reverse=BOTH, flip=flip)
        tensors = case.tensors(dtype, layout, device)
        assert_close(results(lambda t, case=case: case.call(t, backend), tensors), exact(case, tensors))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layout", ["channel_last", "channel_first"])
def test_many_sequences(run, layout):
    device, backend = run
    case = Case(batch=70_001, channels=2, length=3, reverse=BOTH)
    tensors = case.tensors(F32, layout, device)
    ours, want = results(lambda t: case.call(t, backend), tensors), exact(case, tensors)
    for name in ("y", "dx"):
        torch.testing.assert_close(ours[name].cpu().double(), want[name], rtol=1e-5, atol=1e-5)
    assert float((ours["dweight"].cpu().double() - want["dweight"]).norm() / want["dweight"].norm()) < 1e-4


@pytest.mark.parametrize("run", RUNS)
def test_another_stream(run):
    device, backend = run
    case = Case(batch=4, channels=384, length=197, reverse=BOTH)
    tensors = case.tensors(F32, "channel_last", device)
    want = case.call(tensors, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a launch on the default stream would overtake this
        doubled = tensors[0] * 2
        out = case.call([doubled / 2, *tensors[1:]], backend)
    stream.synchronize()
    assert torch.equal(out, want)


@pytest.mark.parametrize("run", RUNS)
def test_a_weight_that_starts_anywhere(run):
    device, backend = run
    x, weight, bias = Case(channels=8).tensors(F32, "channel_last", device)
    shifted = torch.cat([weight.flatten()[:1], weight.flatten()])[1:].view_as(weight)
    assert torch.equal(
        causal_conv1d(x, shifted, bias, backend=backend), causal_conv1d(x, weight, bias, backend=backend)
    )


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layout", ["channel_last", "channel_first"])
def test_more_than_two_to_the_31_elements(run, layout):
    device, backend = run
    free, _ = torch.cuda.mem_get_info()
    if free < 40 << 30:
        pytest.skip(f"needs 40 GiB of free GPU memory, found {free >> 30}")
    batch, channels, length = 12, 384, 500_000  # 2.3e9 elements
    shape = (batch, length, channels) if layout == "channel_last" else (batch, channels, length)
    x = torch.randn(shape, device=device, dtype=BF16)
    x = (x.transpose(1, 2) if layout == "channel_last" else x).requires_grad_()
    weight = torch.randn(1, channels, 4, device=device)
    y = causal_conv1d(x, weight, None, "silu", reverse=True, backend=backend)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    for b in (0, batch - 1):
        part = x[b : b + 1, :, -300:].detach().cpu().double().requires_grad_()
        want = causal_conv1d(part, weight.cpu().double(), None, "silu", reverse=True)
        (dwant,) = torch.autograd.grad(want.sum(), part)
        for got, expected in ((y, want.detach()), (dx, dwant)):
            inner = slice(10, None)
            error = got[b, :, -300:].detach().cpu().double()[:, inner] - expected[0][:, inner]
            assert float(error.norm() / expected[0][:, inner].norm()) < 5e-3
