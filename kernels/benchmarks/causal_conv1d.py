"""causal_conv1d beside torch's own convolution: ``python kernels/benchmarks/causal_conv1d.py``.

What the mixer of Vim and FastVim needs: from one x [B, L, D], stored with the channels side by side, both directions of
a depthwise convolution of 4 taps with bias and SiLU, the second in its own time. "torch" is F.conv1d and F.silu on x
and on its flip, "torch,compiled" the same under torch.compile. Necessary bytes: x read and both outputs written once;
backward: both gradients and x read, dx written. At the shapes of the published networks (shapes.py).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from operator_runs import Benchmark, Case, Contender, main
from selective_scan import other_backends
from shapes import NETWORKS, Scan, tokens
from torch import Tensor

from vmamba_kernels import causal_conv1d

TAPS = 4
KNOWN = [name for name in NETWORKS if "vim" in name]


def tensors(scan: Scan, batch: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x [B, D, L] stored channel-last, weight [K, D, 4], bias [K, D]."""
    make = torch.Generator(device).manual_seed(0)
    x = torch.randn(batch, scan.length, scan.channels, generator=make, device=device).to(dtype).transpose(1, 2)
    weight = torch.randn(scan.directions, scan.channels, TAPS, generator=make, device=device) / TAPS**0.5
    return [x, weight, torch.randn(scan.directions, scan.channels, generator=make, device=device)]


def ours(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    return causal_conv1d(x, weight, bias, "silu", reverse=(False, True), flip_output=True, backend=backend)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    parts = []
    for group, part in enumerate((x, x.flip(-1))):
        y = F.conv1d(part, weight[group][:, None], bias[group], padding=TAPS - 1, groups=x.shape[1])
        parts.append(F.silu(y[..., : x.shape[-1]]))
    return torch.cat(parts, 1)


def contenders(case: Case, device: torch.device) -> list[Contender]:
    given = tensors(case.scan, case.batch, getattr(torch, case.dtype), device)
    found = [Contender("ours", (lambda: ours,), given)]
    for name in other_backends("causal_conv1d", device):
        found.append(Contender(f"ours,{name}", (lambda name=name: partial(ours, backend=name),), given))
    found.append(Contender("torch", (lambda: plain,), given))
    found.append(Contender("torch,compiled", (lambda: torch.compile(plain),), given))
    return found


def necessary_bytes(case: Case) -> int:
    size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    outputs = case.elements * size
    x = outputs // case.scan.directions
    forward, backward = x + outputs, outputs + 2 * x
    return {"forward": forward, "backward": backward, "training": forward + backward}[case.mode]


BENCHMARK = Benchmark("causal_conv1d", contenders, necessary_bytes)

if __name__ == "__main__":
    main(BENCHMARK, __doc__, ["vim_small", "fastvim_tiny"], KNOWN, tokens, seconds=0.1, longest=3.0, budget=25.0)
