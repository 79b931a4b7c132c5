"""What only a GPU can show of the Triton scans: bit-equal runs, the exactness of tf32x3, streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vmamba_kernels.ss2d import ss2d

from .selective_scan_cases import Case, needs_gpu, scan
from .test_ss2d import case, run

pytestmark = needs_gpu


@pytest.mark.parametrize("d_state", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_of_the_scan_are_bit_equal(d_state: int, dtype: torch.dtype) -> None:
    tensors = Case(batch=4, groups=4, group_channels=192, d_state=d_state, length=200).tensors(dtype, device="cuda")
    first = scan(tensors, "triton")
    for _ in range(4):
        again = scan(tensors, "triton")
        assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.parametrize("d_state", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_of_ss2d_are_bit_equal(d_state: int, dtype: torch.dtype) -> None:
    tensors = [t.cuda() for t in case(size=(28, 28), N=d_state, R=12, C=192, batch=8)]
    tensors = [t.to(dtype) for t in tensors[:2]] + tensors[2:]
    dy = torch.randn(tensors[0].shape, device="cuda")
    first = run(ss2d, tensors, dy, backend="triton")
    for _ in range(4):
        again = run(ss2d, tensors, dy, backend="triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("rank", [1, 12, 48])
def test_three_passes_of_tf32_are_as_exact_as_float32(rank: int) -> None:
    from vmamba_kernels.cross_scan.orders import order_map
    from vmamba_kernels.ss2d.triton import _blocks, _project

    make = torch.Generator("cuda").manual_seed(rank)
    x_dbl = torch.randn(4, 196, rank + 2, generator=make, device="cuda")
    weight = torch.randn(1, 192, rank, generator=make, device="cuda")
    blocks = _blocks(196, 192, 1)
    raw = _project(x_dbl, weight, None, order_map("rows", 14, 14, x_dbl.device), 1, blocks)
    ours = raw.view(4, -1, 192)[:, :196]

    def worst(y: Tensor) -> float:
        """Largest error, by the size of the terms of its sum."""
        dt, w = x_dbl[..., :rank].double(), weight[0].T.double()
        return ((y - dt @ w).abs() / (dt.abs() @ w.abs())).max().item()

    plain = (x_dbl[..., :rank, None] * weight[0].T).sum(2)
    assert worst(ours) <= 2 * worst(plain) + 2e-7


def test_another_stream() -> None:
    tensors = [t.cuda() for t in case(size=(14, 14), C=96)]
    wanted = ss2d(*tensors, backend="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # a launch on the default stream would overtake this
        doubled = [t * 2 for t in tensors]
        y = ss2d(*(t / 2 for t in doubled), backend="triton")
    stream.synchronize()
    assert torch.equal(y, wanted)
