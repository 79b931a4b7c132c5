"""The CUDA selective scan on a GPU: parity with float64, determinism, streams, devices, compile, large tensors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vmamba_kernels import native, selective_scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Relative error of a result, by the type it is written in.
ROUNDING = {F32: 5e-6, BF16: 5e-3, F16: 7e-4}


@pytest.fixture(scope="module", autouse=True)
def _library():
    reason = native.load("cuda").reason
    if reason:
        pytest.skip(f"no CUDA library: {reason}")


def channel_last(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def spread(x: Tensor) -> Tensor:
    """The same values with a gap between neighbours: no layout that the kernel reads directly."""
    return torch.stack([x, x], -1)[..., 0]


def inputs(
    batch=2, groups=2, channels=12, states=1, length=49, ratio=1, dtype=F32, weights=True, seed=0
) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(seed)
    kd, dd = groups * channels, groups * channels // ratio
    return {
        "u": torch.randn(batch, kd, length, generator=g).to(dtype),
        "delta": (torch.randn(batch, dd, length, generator=g) - 1).to(dtype),
        "A": -2 * torch.rand(kd, states, generator=g),
        "B": torch.randn(batch, groups, states, length, generator=g).to(dtype),
        "C": torch.randn(batch, groups, states, length, generator=g).to(dtype),
        "D": torch.randn(kd, generator=g) if weights else None,
        "delta_bias": torch.randn(dd, generator=g) if weights else None,
    }


def lay_out(name: str, x: Tensor, layout: str | None) -> Tensor:
    if layout == "channel_last" and name in ("u", "delta"):
        return channel_last(x)
    if layout == "channel_last" and name in ("B", "C"):
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    if layout == "spread":
        return spread(x)
    if layout == "expanded" and name in ("u", "delta"):
        return x[:, :1].expand_as(x)
    if layout == "sliced" and name in ("u", "delta", "B"):
        return torch.cat([x, x], -1)[..., 1 : x.shape[-1] + 1]
    return x


def run(
    tensors: dict[str, Tensor | None],
    device: str = "cuda",
    dtype: torch.dtype | None = None,
    layout: str | None = None,
    dout_dtype: torch.dtype | None = None,
    **options,
) -> dict[str, Tensor]:
    """Output, last state and all gradients, by name. What comes in as gradient is rounded to `dout_dtype`."""
    leaves = {}
    for name, x in tensors.items():
        if x is not None:
            x = lay_out(name, x.to(device=device, dtype=dtype or x.dtype), layout)
            leaves[name] = x.detach().requires_grad_()
    out, last = selective_scan(**leaves, return_last_state=True, **options)
    g = torch.Generator().manual_seed(99)
    dout = torch.randn(out.shape, generator=g).to(dout_dtype or out.dtype).to(device, out.dtype)
    dlast = torch.randn(last.shape, generator=g).to(device, last.dtype)
    if layout == "channel_last":
        dout = channel_last(dout)
    grads = torch.autograd.grad([out, last], list(leaves.values()), [dout, dlast])
    return {"out": out.detach(), "last": last.detach(), **{f"d{n}": x for n, x in zip(leaves, grads, strict=True)}}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, x in got.items():
        assert torch.isfinite(x).all(), name
        scale = want[name].double().norm().clamp_min(1e-30)
        error = float((x.double().cpu() - want[name].double()).norm() / scale)
        assert error <= ROUNDING[x.dtype], f"{name}: relative error {error:.2e} > {ROUNDING[x.dtype]:.0e}"


def check(options: dict | None = None, layout: str | None = None, **sizes) -> None:
    tensors = inputs(**sizes)
    options = dict(options or {})
    got = run(tensors, layout=layout, backend="cuda", **options)
    options.pop("out_dtype", None)
    want = run(tensors, "cpu", torch.float64, layout, got["out"].dtype, backend="reference", **options)
    assert_close(got, want)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("states", [1, 2, 16, 17, 256])
def test_every_number_of_states(states, dtype):
    check(states=states, dtype=dtype, length=70, channels=6 if states == 256 else 34)
    check(states=states, dtype=dtype, length=33, channels=6, layout="channel_last")


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 31, 32, 33, 49, 63, 64, 65, 196, 255, 784, 1025, 3136, 4097])
def test_every_length(length):
    few = {"batch": 1, "groups": 1, "channels": 8} if length > 1000 else {}
    check(length=length, **few)
    check(length=length, dtype=BF16, **few)
    if length < 300:
        check(length=length, dtype=F16, layout="channel_last", states=16)


@pytest.mark.parametrize("channels", [1, 3, 31, 32, 33, 64, 96, 97, 128, 160, 192, 384])
def test_every_width_of_a_group(channels):
    check(channels=channels, length=36, dtype=BF16)
    check(channels=channels, length=36, layout="channel_last", states=3)


@pytest.mark.parametrize("layout", [None, "channel_last", "spread", "expanded", "sliced"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_layouts(layout, dtype):
    for states, length in itertools.product((1, 4), (49, 64)):
        check(layout=layout, dtype=dtype, states=states, length=length, channels=40)


@pytest.mark.parametrize("ratio", [2, 3, 24])
def test_shared_delta_channels(ratio):
    check(ratio=ratio, channels=12)
    check(ratio=ratio, channels=12, dtype=BF16, layout="channel_last")


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_options(dtype):
    check({"out_dtype": dtype}, dtype=dtype, channels=33)
    check({"out_dtype": dtype}, dtype=dtype, channels=33, layout="channel_last")
    check({"delta_softplus": False}, dtype=dtype, weights=False)
    check({"delta_softplus": True}, dtype=dtype, weights=False, states=16)


def test_stage_shapes_of_a_backbone():
    for channels, length in ((96, 3136), (192, 784), (384, 196), (768, 49)):
        for dtype, layout in ((BF16, None), (F32, "channel_last")):
            check(batch=1, groups=4, channels=channels, length=length, dtype=dtype, layout=layout)


@pytest.mark.parametrize("states", [1, 16])
def test_two_runs_are_bit_equal(states):
    tensors = inputs(batch=4, groups=4, channels=192, states=states, length=200, dtype=BF16)
    first, second = (run(tensors, backend="cuda") for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


def test_unwritten_memory_is_never_read():
    """Results stay the same when the memory that new tensors take holds NaN."""
    tensors = inputs(batch=2, groups=2, channels=40, states=3, length=100, dtype=BF16)
    clean = run(tensors, backend="cuda")
    poison = [torch.full((1 << n,), float("nan"), device="cuda") for n in range(4, 24) for _ in range(8)]
    del poison
    dirty = run(tensors, backend="cuda")
    for name, x in clean.items():
        assert torch.equal(x, dirty[name]), name


def test_another_stream():
    tensors = inputs(batch=4, groups=4, channels=96, length=784)
    want = run(tensors, backend="cuda")
    cuda = {n: x.cuda() for n, x in tensors.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a launch on the default stream would overtake this
        doubled = {n: x * 2 for n, x in cuda.items()}
        out = selective_scan(**{n: x / 2 for n, x in doubled.items()}, backend="cuda")
    stream.synchronize()
    assert torch.equal(out, want["out"])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_device():
    tensors = {n: x.to("cuda:1") for n, x in inputs().items()}
    out = selective_scan(**tensors, backend="cuda")
    assert out.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.allclose(out.cpu(), selective_scan(**inputs()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("layout", [None, "channel_last"])
def test_opcheck(dtype, layout):
    t = {n: x.cuda() for n, x in inputs(channels=20, states=2, dtype=dtype).items()}
    if layout:
        t["u"] = channel_last(t["u"])
    args = (*t.values(), True, F32, True)
    args = tuple(a.requires_grad_() if isinstance(a, Tensor) else a for a in args)
    torch.library.opcheck(torch.ops.vmamba.selective_scan.default, args)
    detached = [a.detach() if isinstance(a, Tensor) else a for a in args]
    out, last, states = torch.ops.vmamba.selective_scan(*detached)
    backward = (torch.randn_like(out), torch.randn_like(last), *detached[:7], states, True)
    torch.library.opcheck(
        torch.ops.vmamba.selective_scan_backward.default, backward,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )  # fmt: skip


def test_compile_fullgraph_dynamic():
    def f(**tensors):
        return selective_scan(**{n: x * 1.0 for n, x in tensors.items()}).sin().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for length in (49, 64):
        plain = {n: x.cuda().requires_grad_() for n, x in inputs(length=length).items()}
        want = torch.autograd.grad(f(**plain), list(plain.values()))
        got = torch.autograd.grad(compiled(**plain), list(plain.values()))
        for name, x, y in zip(plain, got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, msg=name)


def test_autocast_widens_mixed_types():
    t = {n: x.cuda() for n, x in inputs().items()}
    mixed = {**t, "u": t["u"].bfloat16(), "B": t["B"].bfloat16()}
    with torch.autocast("cuda", torch.bfloat16):
        out = selective_scan(**mixed, backend="cuda")
    assert out.dtype is F32
    same = {n: x.float() for n, x in mixed.items()}
    assert torch.equal(out, selective_scan(**same, backend="cuda"))


@pytest.mark.parametrize("states", [1, 3])
def test_atomics_on_request(states):
    with native.use_cuda_atomics():
        check(channels=300, states=states, length=70, dtype=BF16)
        check(channels=300, states=states, length=70, batch=1, groups=1, layout="channel_last")


def test_time_cut_into_segments_changes_little():
    """One sequence alone is cut into segments; among many it is not."""
    t = {n: x.cuda() for n, x in inputs(batch=1, groups=1, channels=32, length=4096).items()}
    alone = selective_scan(**t, backend="cuda")
    many = {n: x.repeat(2048, *[1] * (x.dim() - 1)) if n in ("u", "delta", "B", "C") else x for n, x in t.items()}
    among = selective_scan(**many, backend="cuda")
    assert torch.equal(among[0], among[-1])
    torch.testing.assert_close(alone[0], among[0], rtol=1e-4, atol=1e-4)


def test_nan_and_large_values():
    t = {n: x.cuda() for n, x in inputs(channels=4, length=40).items()}
    t["u"][0, 1, 20] = float("nan")
    out = selective_scan(**t, backend="cuda")
    assert torch.isfinite(out[0, 1, :20]).all() and torch.isnan(out[0, 1, 20:]).all()
    assert torch.isfinite(out[0, 2:]).all()
    t = inputs(channels=4, length=40)
    t["A"] *= 1e4
    t["delta"] *= 40
    got = selective_scan(**{n: x.cuda() for n, x in t.items()}, backend="cuda").cpu()
    want = selective_scan(**{n: x.double() for n, x in t.items()})
    assert float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_more_than_two_to_the_31_elements(layout):
    free, _ = torch.cuda.mem_get_info()
    if free < 48 << 30:
        pytest.skip(f"needs 48 GiB of free GPU memory, found {free >> 30}")
    batch, kd, length = 12, 384, 500_000  # 2.3e9 elements
    g = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda", dtype=BF16)

    if layout == "channel_last":
        u, delta = (random(batch, length, kd).transpose(1, 2) for _ in range(2))
    else:
        u, delta = random(batch, kd, length), random(batch, kd, length)
    delta -= 2
    B, C = random(batch, 4, 1, length), random(batch, 4, 1, length)
    A = -torch.rand(kd, 1, generator=g, device="cuda") - 0.5
    leaves = [x.requires_grad_() for x in (u, delta, B, C)]
    out = selective_scan(u, delta, A, B, C, out_dtype=BF16, backend="cuda")
    dout = torch.ones((), device="cuda", dtype=BF16).expand(out.shape)
    dout = dout.clone(memory_format=torch.contiguous_format) if layout == "channel_first" else channel_last(dout)
    grads = torch.autograd.grad(out, leaves, dout)
    # The state forgets within some hundred steps: windows at both ends of the last batch, and of the first, suffice.
    for b in (0, batch - 1):
        for lo, hi in ((0, 600), (length - 600, length)):
            part = [x[b : b + 1, ..., lo:hi].detach().double().cpu().requires_grad_() for x in (u, delta, B, C)]
            y = selective_scan(part[0], part[1], A.double().cpu(), part[2], part[3])
            inner = slice(400, 600) if lo else slice(0, 200)
            error = (out[b, :, lo:hi].double().cpu() - y[0].detach())[:, inner].norm() / y[0, :, inner].detach().norm()
            assert error < 5e-3, (b, lo, float(error))
            want = torch.autograd.grad(y.sum(), part)
            for name, x, w in zip(("u", "delta", "B", "C"), grads, want, strict=True):
                got = x[b, ..., lo:hi].double().cpu()[..., inner]
                w = w[0][..., inner]
                assert float((got - w).norm() / w.norm()) < 8e-3, (name, b, lo)
