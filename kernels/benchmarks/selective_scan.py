"""The selective scan beside other ways to compute it: ``python kernels/benchmarks/selective_scan.py``.

At the shapes of the published networks (shapes.py). Tensors: u, delta, B, C random normal, delta_bias the inverse
softplus of a step drawn log-uniformly from [0.001, 0.1], A = -(1 ... N), D = 1; softplus, bias and skip inside for
everybody. "ours" gets u, delta, B and C stored channel-last, as our models store them, "ours,time-first" stored along
time, as mamba-ssm and the loop get them. Necessary bytes: u, delta, B and C read and y written once; backward: these
and dy read, their gradients written.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from operator_runs import Benchmark, Case, Contender, main
from peers import compiled_associative_scan, flash_linear_attention, mamba_ssm, mambapy, sequential_loop
from shapes import NETWORKS, Scan
from torch import Tensor

from vmamba_kernels import backends, selective_scan


def tensors(scan: Scan, batch: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """u, delta, A, B, C, D, delta_bias: [B, K*D, L] and [B, K, N, L], stored channel-last."""
    make = torch.Generator(device).manual_seed(0)
    K, N, channels = scan.directions, scan.d_state, scan.directions * scan.channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, scan.length, *shape, generator=make, device=device).to(dtype).movedim(1, -1)

    step = torch.exp(torch.rand(channels, generator=make, device=device) * math.log(100.0) + math.log(0.001))
    A = -torch.arange(1.0, N + 1, device=device).repeat(channels, 1)
    bias = step + torch.log(-torch.expm1(-step))
    ones = torch.ones(channels, device=device)
    return [normal(channels), normal(channels), A, normal(K, N), normal(K, N), ones, bias]


def ours(*arguments: Tensor, backend: str | None = None) -> Tensor:
    y = selective_scan(*arguments, backend=backend)
    assert isinstance(y, Tensor)
    return y


def other_backends(operator: str, device: torch.device) -> list[str]:
    """Names of the backends that run on the device and are not the one that is chosen, nor a composition."""
    chosen = backends.choose(operator, device.type)[0].name
    found = []
    for name in backends.names(operator):
        try:
            backends.require(operator, name, device.type)
        except (RuntimeError, ValueError):
            continue
        if name not in (chosen, "reference", "unfused"):
            found.append(name)
    return found


def associative(device: torch.device) -> tuple[partial, ...]:
    modes = ("pointwise", "generic") if device.type == "cuda" else ("generic",)
    return tuple(partial(compiled_associative_scan, mode) for mode in modes)


def contenders(case: Case, device: torch.device) -> list[Contender]:
    last = tensors(case.scan, case.batch, getattr(torch, case.dtype), device)
    first = [x.contiguous() for x in last]
    whole = last[0].numel() * case.scan.d_state * 4.0  # bytes of a float32 [B, K*D, L, N]
    room = (8 if case.mode == "forward" else 30) * whole
    found = [Contender("ours", (lambda: ours,), last), Contender("ours,time-first", (lambda: ours,), first)]
    for name in other_backends("selective_scan", device):
        found.append(Contender(f"ours,{name}", (lambda name=name: partial(ours, backend=name),), last))
    found.append(Contender("reference", (lambda: partial(ours, backend="reference"),), last, room / 4))
    found.append(Contender("associative_scan", associative(device), last, room))
    if device.type == "cuda":
        found.append(Contender("mamba-ssm", (mamba_ssm,), first))
        found.append(Contender("flash-linear-attention", (flash_linear_attention,), last, room))
    found.append(Contender("mambapy", (mambapy,), last, room))
    found.append(Contender("loop", (lambda: sequential_loop,), first, room, slow_backward=True))
    return found


def necessary_bytes(case: Case) -> int:
    size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    u, y = case.elements * size, case.elements * 4
    b_c = 2 * case.batch * case.scan.directions * case.scan.d_state * case.scan.length * size
    inputs = 2 * u + b_c
    backward = 2 * inputs + y
    return {"forward": inputs + y, "backward": backward, "training": inputs + y + backward}[case.mode]


BENCHMARK = Benchmark("selective_scan", contenders, necessary_bytes)

if __name__ == "__main__":
    main(BENCHMARK, __doc__, ["vmamba_tiny", "vanilla_vmamba_tiny", "vim_tiny", "fastvim_tiny"], list(NETWORKS))
