"""The pooled scan beside plain torch: ``python kernels/benchmarks/pooled_scan.py``.

All see the tensors of a FastVim mixer after the convolution: two directions over a grid of tokens stored channel-last,
its rows or its columns pooled to one step of 16 states each; they return the mean of the
directions. "torch" flips the second direction, runs `selective_scan` on each, repeats each pooled output for its
tokens, adds the skip, flips back, adds and halves; "unfused" is the backend of that name. Necessary bytes: u_full and
the pooled tensors read and y written once, in float32; backward: these and dy read, their gradients written. At the
shapes of the published networks (shapes.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from operator_runs import Benchmark, Case, Contender, main
from selective_scan import other_backends
from shapes import NETWORKS, Scan, tokens
from torch import Tensor

from vmamba_kernels import backends, pooled_scan, selective_scan

KNOWN = [name for name in NETWORKS if "fastvim" in name]
AXES = {"rows": -1, "columns": 0}


def tensors(scan: Scan, batch: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """u_full [B, 2*D, H*W], u and delta [B, 2*D, H], A, B and C [B, 2, N, H], D, delta_bias, channel-last; H = W."""
    make = torch.Generator(device).manual_seed(0)
    N, channels, steps = scan.d_state, scan.directions * scan.channels, scan.height

    def normal(length: int, *shape: int) -> Tensor:
        return torch.randn(batch, length, *shape, generator=make, device=device).to(dtype).movedim(1, -1)

    u_full, u, delta = normal(scan.length, channels), normal(steps, channels), normal(steps, channels)
    A = -torch.arange(1.0, N + 1, device=device).repeat(channels, 1)
    bias = torch.rand(channels, generator=make, device=device) * 4 - 6
    B, C = normal(steps, scan.directions, N), normal(steps, scan.directions, N)
    return [u_full, u, delta, A, B, C, torch.ones(channels, device=device), bias]


def ours(scan: Scan, axis: int, backend: str | None = None) -> Callable[..., Tensor]:
    """The operator at a grid."""
    options = {"grid": (scan.height, scan.width), "pooled_axes": axis, "reverse": (False, True), "average": True}
    return partial(pooled_scan, **options, backend=backend)


def plain(scan: Scan, axis: int) -> Callable[..., Tensor]:
    """The same by flips and repeats around the selective scan of each direction."""

    def mixer(
        u_full: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
    ) -> Tensor:
        outputs = []
        for k in range(2):
            part = slice(k * scan.channels, (k + 1) * scan.channels)
            walked = [u_full[:, part], u[:, part], delta[:, part], B[:, k : k + 1], C[:, k : k + 1]]
            full, pooled, step, B_k, C_k = (x.flip(-1) for x in walked) if k else walked
            z = selective_scan(pooled, step, A[part], B_k, C_k, None, bias[part])
            assert isinstance(z, Tensor)
            spread = z.repeat_interleave(scan.width, -1) if axis == -1 else z.repeat(1, 1, scan.height)
            y = spread + D[part, None] * full
            outputs.append(y.flip(-1) if k else y)
        return (outputs[0] + outputs[1]) / 2

    return mixer


def contenders(axis: int, case: Case, device: torch.device) -> list[Contender]:
    given = tensors(case.scan, case.batch, getattr(torch, case.dtype), device)
    found = [Contender("ours", (lambda: ours(case.scan, axis),), given)]
    others = other_backends("pooled_scan", device)
    if backends.choose("pooled_scan", device.type)[0].name != "unfused":
        others.append("unfused")
    for name in others:
        shown = name if name == "unfused" else f"ours,{name}"
        found.append(Contender(shown, (lambda name=name: ours(case.scan, axis, name),), given))
    found.append(Contender("torch", (lambda: plain(case.scan, axis),), given))
    return found


def necessary_bytes(case: Case) -> int:
    size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    channels = case.scan.directions * case.scan.channels
    pooled = case.batch * case.scan.height * (2 * channels + 2 * case.scan.directions * case.scan.d_state)
    inputs = (case.elements + pooled) * size
    y = case.elements // case.scan.directions * 4
    return {"forward": inputs + y, "backward": 2 * inputs + y, "training": 3 * inputs + 2 * y}[case.mode]


BENCHMARKS = [
    Benchmark(f"pooled_scan, {pooled} pooled", partial(contenders, axis), necessary_bytes)
    for pooled, axis in AXES.items()
]

if __name__ == "__main__":
    main(BENCHMARKS, __doc__, ["fastvim_tiny"], KNOWN, tokens, seconds=0.1, longest=3.0, budget=25.0)
