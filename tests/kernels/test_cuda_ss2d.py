"""The CUDA ss2d on a GPU: parity with float64, determinism, streams, compile, opcheck, large tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vmamba_kernels import native, scan_order
from vmamba_kernels.ss2d import ss2d
from vmamba_kernels.ss2d.op import backward, forward
from vmamba_kernels.ss2d.sequences import missing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Relative error of a result, by the type it is written in.
ROUNDING = {F32: 5e-6, BF16: 5e-3, F16: 7e-4}
NAMES = ("x", "x_dbl", "dt_weight", "A", "D", "delta_bias")


@pytest.fixture(scope="module", autouse=True)
def _library():
    if reason := missing("cuda"):
        pytest.skip(f"ss2d on cuda: {reason}")


def inputs(
    size=(7, 9), batch=2, channels=40, states=1, rank=6, order="cross2d", dtype=F32, weights=True, channel_first=False
) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(size[0] * 1000 + size[1] + channels)
    K = len(scan_order(order, 1, 1))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def image(rows: int) -> Tensor:
        x = random(batch, *size, rows).to(dtype)
        return x.permute(0, 3, 1, 2).contiguous() if channel_first else x

    return {
        "x": image(channels),
        "x_dbl": image(K * (rank + 2 * states)),
        "dt_weight": random(K, channels, rank) * rank**-0.5,
        "A": -2 * torch.rand(K * channels, states, generator=g),
        "D": random(K * channels) if weights else None,
        "delta_bias": random(K * channels) - 1 if weights else None,
    }


def run(
    tensors: dict[str, Tensor | None], backend: str, device: str = "cuda", dtype: torch.dtype | None = None, **options
) -> dict[str, Tensor]:
    """The output and all gradients, by name."""
    leaves = {
        n: x.to(device=device, dtype=dtype or x.dtype).detach().requires_grad_()
        for n, x in tensors.items()
        if x is not None
    }
    y = ss2d(**leaves, backend=backend, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(99)).to(device, y.dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **{f"d{n}": x for n, x in zip(leaves, grads, strict=True)}}


def check(order: str = "cross2d", channel_first: bool = False, low_out: bool = False, **sizes) -> None:
    tensors = inputs(order=order, channel_first=channel_first, **sizes)
    options = {"order": order, "channel_first": channel_first}
    got = run(tensors, "cuda", out_dtype=tensors["x"].dtype if low_out else None, **options)
    want = run(tensors, "reference", "cpu", torch.float64, **options)
    for name, x in got.items():
        assert torch.isfinite(x).all(), name
        error = float((x.double().cpu() - want[name]).norm() / want[name].norm().clamp_min(1e-30))
        bound = ROUNDING[x.dtype] * (2 if low_out and x.dtype is not F32 else 1)  # dy is rounded too
        assert error <= bound, f"{name}: relative error {error:.2e} > {bound:.0e}"


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("states", [1, 2, 3, 16, 17, 256])
def test_every_number_of_states(states, dtype):
    check(states=states, dtype=dtype, size=(6, 11), channels=6 if states == 256 else 34)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 7), (8, 1), (3, 3), (4, 8), (5, 13), (7, 7), (14, 14), (28, 28), (56, 56)]
)
@pytest.mark.parametrize("order", ["cross2d", "bidi", "unidi", "rot90", "rows"])
def test_every_size_and_order(size, order):
    check(size=size, order=order, channels=20)
    check(size=size, order=order, channels=33, dtype=BF16, low_out=True)


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 16, 31, 32, 33, 96, 100, 384])
@pytest.mark.parametrize("channel_first", [False, True])
def test_every_width_and_layout(channels, channel_first):
    check(channels=channels, channel_first=channel_first)
    check(channels=channels, channel_first=channel_first, dtype=F16, weights=False, low_out=True)


@pytest.mark.parametrize("rank", [1, 3, 4, 6, 12, 24, 48, 97])
def test_every_rank(rank):
    check(rank=rank)
    check(rank=rank, states=3, dtype=BF16)


def test_sums_that_do_not_fit_into_shared_memory():
    check(size=(180, 181), batch=1, channels=9, rank=2)
    check(size=(150, 151), batch=1, channels=40, states=4, rank=2, dtype=BF16)


def test_stage_shapes_of_a_backbone():
    for channels, side, rank in ((96, 56, 6), (192, 28, 12), (384, 14, 24), (768, 7, 48)):
        check(size=(side, side), channels=channels, rank=rank, batch=1, dtype=BF16)


@pytest.mark.parametrize("states", [1, 16])
@pytest.mark.parametrize("size", [(14, 14), (150, 150)])
def test_two_runs_are_bit_equal(states, size):
    tensors = inputs(size=size, batch=3, channels=100, states=states, dtype=BF16)
    first, second = (run(tensors, "cuda") for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@pytest.mark.parametrize("states", [1, 3])
def test_atomics_on_request(states):
    with native.use_cuda_atomics():
        check(channels=300, states=states, dtype=BF16)
        check(size=(28, 28), batch=1, channels=100, states=states)


def test_unwritten_memory_is_never_read():
    tensors = inputs(size=(150, 150), channels=40, states=3, dtype=BF16)
    clean = run(tensors, "cuda")
    poison = [torch.full((1 << n,), float("nan"), device="cuda") for n in range(4, 24) for _ in range(8)]
    del poison
    for name, x in run(tensors, "cuda").items():
        assert torch.equal(x, clean[name]), name


def test_another_stream():
    tensors = {n: x.cuda() for n, x in inputs(size=(56, 56), channels=96).items()}
    want = ss2d(**tensors, backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a launch on the default stream would overtake this
        doubled = {n: x * 2 for n, x in tensors.items()}
        y = ss2d(**{n: x / 2 for n, x in doubled.items()}, backend="cuda")
    stream.synchronize()
    assert torch.equal(y, want)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("channel_first", [False, True])
def test_opcheck(dtype, channel_first):
    tensors = inputs(states=2, dtype=dtype, channel_first=channel_first)
    leaves = [x.cuda().requires_grad_() for x in tensors.values()]
    flags = ("cross2d", channel_first, F32, True, "cuda")
    torch.library.opcheck(forward, (*leaves, *flags))
    y, states = (t.detach() for t in forward(*leaves, *flags))
    frozen = [x.detach() for x in leaves]
    torch.library.opcheck(backward, (torch.randn_like(y), *frozen, states, "cross2d", channel_first, "cuda"))


def test_compile_fullgraph_dynamic():
    def f(*tensors):
        return ss2d(*tensors).sin().sum()

    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for size in ((7, 9), (8, 12)):
        leaves = [x.cuda().requires_grad_() for x in inputs(size=size).values()]
        want = torch.autograd.grad(f(*leaves), leaves)
        for name, x, y in zip(NAMES, torch.autograd.grad(compiled(*leaves), leaves), want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, msg=name)


def test_the_chosen_backend_is_cuda():
    tensors = {n: x.cuda() for n, x in inputs().items()}
    assert torch.equal(ss2d(**tensors), ss2d(**tensors, backend="cuda"))


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """A large batch of small images: the first and the last agree with the same images alone."""
    free, _ = torch.cuda.mem_get_info()
    if free < 60 << 30:
        pytest.skip(f"needs 60 GiB of free GPU memory, found {free >> 30}")
    batch, size, channels = 14_000, (40, 40), 96  # 2.15e9 elements
    few = {n: x.cuda() for n, x in inputs(size=size, channels=channels, rank=1, dtype=BF16, order="rows").items()}
    images = {n: torch.empty(batch, *few[n].shape[1:], dtype=BF16, device="cuda") for n in ("x", "x_dbl")}
    for n, x in images.items():
        x.normal_()
        x[[0, -1]] = few[n]
    leaves = {**few, **images}
    leaves = {n: x.detach().requires_grad_() for n, x in leaves.items()}
    y = ss2d(**leaves, order="rows", out_dtype=BF16, backend="cuda")
    grads = torch.autograd.grad(y, [leaves["x"], leaves["x_dbl"]], torch.ones_like(y))
    alone = {n: x.detach().requires_grad_() for n, x in few.items()}
    want = ss2d(**alone, order="rows", out_dtype=BF16, backend="cuda")
    wanted = torch.autograd.grad(want, [alone["x"], alone["x_dbl"]], torch.ones_like(want))
    for got, expected in zip((y, *grads), (want, *wanted), strict=True):
        error = (got[[0, -1]].double() - expected.double()).norm() / expected.double().norm()
        assert error < 5e-3, float(error)
