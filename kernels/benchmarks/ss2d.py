"""The fused ss2d beside the same mixer made of separate ops: ``python kernels/benchmarks/ss2d.py``.

All see the same values: x and its projections x_dbl, in image order, channel-last. "unfused" is cross_scan of both, the
step-size projection, selective_scan and cross_merge, each as fast as this package has it; "unfused,PEER" the same
around the scan of a peer, its sequences stored along time. Necessary bytes: x and x_dbl read and y written once;
backward: these and dy read, dx and dx_dbl written. At the shapes of the published networks (shapes.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from operator_runs import Benchmark, Case, Contender, main
from peers import flash_linear_attention, mamba_ssm
from selective_scan import associative, other_backends
from selective_scan import ours as own_scan
from shapes import TWO_DIMENSIONAL, Scan
from torch import Tensor

from vmamba_kernels import cross_merge, cross_scan, ss2d

LAST = {"in_channel_first": False, "out_channel_first": False}
TO_FIRST = {"in_channel_first": False, "out_channel_first": True}


def tensors(scan: Scan, batch: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x [B, H, W, D], x_dbl [B, H, W, K*(R+2N)], dt_weight [K, D, R], A [K*D, N], D and delta_bias [K*D]."""
    make = torch.Generator(device).manual_seed(0)
    K, R, N, D = scan.directions, scan.rank, scan.d_state, scan.channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=make, device=device)

    x = normal(batch, scan.height, scan.width, D).to(dtype)
    x_dbl = normal(batch, scan.height, scan.width, K * (R + 2 * N)).to(dtype)
    dt_weight, A = normal(K, D, R) * R**-0.5, -uniform(K * D, N) * N - 0.5
    return [x, x_dbl, dt_weight, A, torch.ones(K * D, device=device), uniform(K * D) * 4 - 6]


def unfused(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    _, H, W, channels = x.shape
    K, _, rank = dt_weight.shape
    d_state = A.shape[1]
    p = cross_scan(x_dbl.unflatten(3, (K, rank + 2 * d_state)), one_by_one=True, **LAST)
    dt, b, c = p.split([rank, d_state, d_state], dim=-1)
    delta = torch.einsum("blkr,kdr->blkd", dt, dt_weight.to(dt.dtype))
    u = cross_scan(x, **LAST).flatten(2).transpose(1, 2)
    b, c = b.permute(0, 2, 3, 1), c.permute(0, 2, 3, 1)
    y = own_scan(u, delta.flatten(2).transpose(1, 2), A, b, c, D, delta_bias)
    y = y.transpose(1, 2).reshape(-1, H, W, K, channels)
    return cross_merge(y, **LAST).unflatten(1, (H, W))


def unfused_by(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The mixer around another scan, its sequences stored along time."""

    def mixer(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
        _, H, W, channels = x.shape
        K, _, rank = dt_weight.shape
        d_state = A.shape[1]
        p = cross_scan(x_dbl.unflatten(3, (K, rank + 2 * d_state)), one_by_one=True, **TO_FIRST)
        dt, b, c = p.split([rank, d_state, d_state], dim=2)
        delta = torch.einsum("bkrl,kdr->bkdl", dt, dt_weight.to(dt.dtype))
        u = cross_scan(x, **TO_FIRST).flatten(1, 2)
        y = scan(u, delta.flatten(1, 2), A, b.contiguous(), c.contiguous(), D, delta_bias)
        y = y.reshape(-1, K, channels, H, W)
        return cross_merge(y, in_channel_first=True, out_channel_first=False).unflatten(1, (H, W))

    return mixer


def contenders(case: Case, device: torch.device) -> list[Contender]:
    given = tensors(case.scan, case.batch, getattr(torch, case.dtype), device)
    room = case.elements * case.scan.d_state * 4.0 * (8 if case.mode == "forward" else 30)
    found = [Contender("ours", (lambda: ss2d,), given)]
    for name in other_backends("ss2d", device):
        found.append(Contender(f"ours,{name}", (lambda name=name: partial(ss2d, backend=name),), given))
    found.append(Contender("unfused", (lambda: unfused,), given))
    peers = {"associative_scan": associative(device)}
    if device.type == "cuda":
        peers |= {"mamba-ssm": (mamba_ssm,), "flash-linear-attention": (flash_linear_attention,)}
    for name, makers in peers.items():
        functions = tuple(lambda make=make: unfused_by(make()) for make in makers)
        found.append(Contender(f"unfused,{name}", functions, given, 0.0 if name == "mamba-ssm" else room))
    return found


def necessary_bytes(case: Case) -> int:
    scan = case.scan
    size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    pixels = case.batch * scan.length
    inputs = pixels * (scan.channels + scan.directions * (scan.rank + 2 * scan.d_state)) * size
    y = pixels * scan.channels * 4
    return {"forward": inputs + y, "backward": 2 * inputs + y, "training": 3 * inputs + 2 * y}[case.mode]


BENCHMARK = Benchmark("ss2d", contenders, necessary_bytes)

if __name__ == "__main__":
    main(BENCHMARK, __doc__, ["vmamba_tiny", "vanilla_vmamba_tiny"], TWO_DIMENSIONAL)
