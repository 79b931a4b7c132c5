"""What the tests of the pooled scan share: the definition in float64, the cases, the backends and the comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from vmamba_kernels import pooled_scan
from vmamba_kernels.pooled_scan import library

from .selective_scan_cases import needs_gpu, sequential

NAMES = ("u_full", "u_pooled", "delta", "A", "B", "C", "D", "delta_bias")
LAYOUTS = ("channel_last", "channel_first", "strided")
INTERPRETED = not torch.cuda.is_available()

needs_cpu_library = pytest.mark.skipif(bool(library.missing("cpu")), reason=f"backend 'cpu': {library.missing('cpu')}")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="backend 'triton': triton is not installed")
# (device, backend): every way to run the operator; those that cannot run here are skipped with their name.
BACKENDS = [
    pytest.param(("cpu", "reference"), id="cpu-reference"),
    pytest.param(("cpu", "unfused"), id="cpu-unfused"),
    pytest.param(("cpu", "cpu"), id="cpu-cpu", marks=needs_cpu_library),
    pytest.param(
        ("cpu", "triton"),
        id="cpu-triton",
        marks=[needs_triton, pytest.mark.skipif(not INTERPRETED, reason="with a GPU Triton is not interpreted")],
    ),
    pytest.param(("cuda", None), id="cuda", marks=needs_gpu),
    pytest.param(("cuda", "triton"), id="cuda-triton", marks=[*needs_gpu, needs_triton]),
]


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call; `shared` channels of u_pooled to a channel of delta."""

    grid: tuple[int, ...] = (5, 3)
    pooled_axes: tuple[int, ...] = (-1,)
    batch: int = 2
    groups: int = 2
    width: int = 9
    d_state: int = 2
    reverse: tuple[bool, ...] = (False, True)
    average: bool = True
    shared: int = 1
    optional: bool = True
    softplus: bool = True
    skip: bool = True

    def __str__(self) -> str:
        axes = "x".join(f"({n})" if i in self.dropped() else str(n) for i, n in enumerate(self.grid))
        flags = "".join("r" if back else "f" for back in self.reverse) + ("-mean" if self.average else "")
        extra = ("" if self.optional else "-nobias") + ("" if self.skip else "-noskip")
        extra += ("" if self.softplus else "-nosoftplus") + (f"-shared{self.shared}" if self.shared > 1 else "")
        return f"{axes}-B{self.batch}K{self.groups}D{self.width}N{self.d_state}-{flags}{extra}"

    def dropped(self) -> set[int]:
        return {axis % len(self.grid) for axis in self.pooled_axes}

    def steps(self) -> int:
        return math.prod(n for axis, n in enumerate(self.grid) if axis not in self.dropped())

    def options(self) -> dict:
        options = {"grid": self.grid, "pooled_axes": self.pooled_axes, "reverse": self.reverse}
        return options | {"average": self.average, "delta_softplus": self.softplus}

    def step_of_each_token(self) -> Tensor:
        """[L], counted one by one."""
        kept = [n if axis not in self.dropped() else 1 for axis, n in enumerate(self.grid)]
        return torch.arange(self.steps()).view(kept).expand(self.grid).reshape(-1)

    def tensors(self, dtype: torch.dtype = torch.float32, layout: str = "channel_last", device: str = "cpu") -> list:
        """The arguments, alike for every layout; u_full as [B, K*D, L]."""
        make = torch.Generator().manual_seed(7)
        channels, steps, small = self.groups * self.width, self.steps(), 1.0 if self.softplus else 0.2

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make)

        u_full, u = random(self.batch, channels, math.prod(self.grid)), random(self.batch, channels, steps)
        delta = random(self.batch, channels // self.shared, steps) * small
        delta = delta if self.softplus else delta.abs()
        A = -torch.rand(channels, self.d_state, generator=make) * 2 - 0.05
        B, C = (random(self.batch, self.groups, self.d_state, steps) for _ in range(2))
        D = random(channels) if self.skip else None
        bias = torch.rand(channels // self.shared, generator=make) * small if self.optional else None
        u_full, u, delta, B, C = (lay_out(x.to(dtype).to(device), layout) for x in (u_full, u, delta, B, C))
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        A, D, bias = (None if x is None else x.to(device, wide) for x in (A, D, bias))
        return [u_full, u, delta, A, B, C, D, bias]


def lay_out(x: Tensor, layout: str) -> Tensor:
    """x with the same values in another storage."""
    if layout == "channel_last":
        return x.movedim(-1, 1).contiguous().movedim(1, -1)
    return x.contiguous() if layout == "channel_first" else torch.stack([x, x], -1)[..., 0]


def definition(
    case: Case,
    u_full: Tensor,
    u_pooled: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> Tensor:
    """The output group by group, by flips, a sequential scan and an index; gradients by autograd."""
    K, token_steps = case.groups, case.step_of_each_token()
    outputs = []
    for k in range(K):

        def part(x: Tensor | None, axis: int, k: int = k) -> Tensor | None:
            return None if x is None else x.tensor_split(K, axis)[k]

        turn = (lambda x: x.flip(-1)) if case.reverse[k] else (lambda x: x)
        walked = [turn(part(x, 1)) for x in (u_pooled, delta)]
        B_k, C_k = (turn(part(x, 1)) for x in (B, C))
        z, _ = sequential(*walked, part(A, 0), B_k, C_k, None, part(delta_bias, 0), case.softplus)
        y = turn(z)[..., token_steps]
        outputs.append(y if D is None else y + part(D, 0)[:, None] * part(u_full, 1))
    return torch.stack(outputs).mean(0) if case.average else torch.cat(outputs, 1)


def values_and_gradients(function, tensors: list) -> dict[str, Tensor]:
    """y and the gradient of every argument, under a fixed gradient of y."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    y = function(*leaves)
    make = torch.Generator().manual_seed(11)
    dy = torch.randn(y.shape, generator=make).to(y.device, y.dtype)
    present = [(name, x) for name, x in zip(NAMES, leaves) if x is not None]
    gradients = torch.autograd.grad(y, [x for _, x in present], dy, allow_unused=True)
    unused = {name for (name, _), gradient in zip(present, gradients) if gradient is None}
    assert unused <= ({"u_full"} if leaves[6] is None else set()), unused
    named = {f"d{name}": gradient for (name, _), gradient in zip(present, gradients) if gradient is not None}
    return {"y": y.detach()} | named


def exact(case: Case, tensors: list) -> dict[str, Tensor]:
    """The same by the definition in float64 on the CPU."""
    wide = [None if x is None else x.detach().double().cpu() for x in tensors]
    return values_and_gradients(lambda *leaves: definition(case, *leaves), wide)


def ours(case: Case, tensors: list, backend: str | None, **more) -> dict[str, Tensor]:
    """The same by the operator."""
    return values_and_gradients(
        lambda *leaves: pooled_scan(*leaves, **case.options(), backend=backend, **more), tensors
    )
