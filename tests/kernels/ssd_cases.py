"""What the tests of ssd share: cases, backends, a recurrence of its own in float64, and values with every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import ssd

NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_states")
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="backend on 'cuda': torch sees no CUDA device"),
]
interpreted = [
    pytest.mark.skipif(find_spec("triton") is None, reason="backend 'triton': triton is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="backend 'triton' on 'cpu': the GPU runs the kernels"),
]
CHUNKED = pytest.param(("cpu", "chunked"), id="cpu-chunked")
REFERENCE = pytest.param(("cpu", "reference"), id="cpu-reference")
TRITON = pytest.param(("cpu", "triton"), id="cpu-triton", marks=interpreted)
CUDA = [
    pytest.param(("cuda", None), id="cuda", marks=needs_gpu),
    pytest.param(("cuda", "chunked"), id="cuda-chunked", marks=needs_gpu),
]
BACKENDS = [REFERENCE, CHUNKED, TRITON, *CUDA]


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call."""

    batch: int = 2
    length: int = 37
    heads: int = 4
    width: int = 5
    groups: int = 2
    d_state: int = 3
    optional: bool = True
    softplus: bool = True
    dt_limit: tuple[float, float] = (0.0, float("inf"))

    def __str__(self) -> str:
        flags = ("" if self.optional else "-plain") + ("" if self.softplus else "-nosoftplus")
        limit = "" if self.dt_limit[1] == float("inf") else "-limits"
        return f"B{self.batch}L{self.length}H{self.heads}P{self.width}G{self.groups}N{self.d_state}{flags}{limit}"

    @property
    def options(self) -> dict:
        return dict(dt_softplus=self.softplus, dt_limit=self.dt_limit)

    def tensors(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list:
        """x, dt, A, B, C, D, dt_bias, initial_states; in float32 but for what `dtype` rules."""
        make = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make)

        projection = (self.batch, self.length, self.groups, self.d_state)
        dt = normal(self.batch, self.length, self.heads) - 1
        A = -torch.rand(self.heads, generator=make) * 2 - 0.05
        inputs = [normal(self.batch, self.length, self.heads, self.width), dt if self.softplus else dt.abs()]
        inputs += [normal(*projection), normal(*projection)]
        x, dt, B, C = (t.to(device, dtype) for t in inputs)
        weights = [A, normal(self.heads, self.width), torch.rand(self.heads, generator=make)]
        weights += [normal(self.batch, self.heads, self.width, self.d_state)]
        if dtype is torch.float64:
            weights = [w.double() for w in weights]
        A, *rest = (w.to(device) for w in weights)
        return [x, dt, A, B, C, *(rest if self.optional else [None] * 3)]


def sequential(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    dt_softplus: bool = True,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """y and the last state by one loop over time, in the type of the arguments; gradients by autograd."""
    size = dt if dt_bias is None else dt + dt_bias
    size = (F.softplus(size, threshold=20.0) if dt_softplus else size).clamp(*dt_limit)
    repeats = x.shape[2] // B.shape[2]
    B, C = B.repeat_interleave(repeats, 2), C.repeat_interleave(repeats, 2)
    h = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[3]) if initial_states is None else initial_states
    steps = []
    for t in range(x.shape[1]):
        s = size[:, t, :, None, None]
        h = torch.exp(s * A[:, None, None]) * h + s * x[:, t, :, :, None] * B[:, t, :, None, :]
        steps.append((h * C[:, t, :, None, :]).sum(-1))
    y = torch.stack(steps, 1)
    return (y if D is None else y + D * x), h


def values_and_gradients(function: Callable[..., tuple[Tensor, Tensor]], tensors: list, **options) -> dict[str, Tensor]:
    """y, last_state and the gradient of every argument, under fixed gradients of y and of the last state."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y, last = function(*leaves, return_final_states=True, **options)
    make = torch.Generator().manual_seed(11)
    dy, dlast = (torch.randn(t.shape, generator=make).to(t.device, t.dtype) for t in (y, last))
    present = [(name, t) for name, t in zip(NAMES, leaves) if t is not None]
    gradients = torch.autograd.grad([y, last], [t for _, t in present], [dy, dlast])
    return {"y": y.detach(), "last_state": last.detach()} | {
        f"d{name}": gradient for (name, _), gradient in zip(present, gradients)
    }


def exact(tensors: list, **options) -> dict[str, Tensor]:
    """The same by the sequential scan in float64 on the CPU."""
    wide = [None if t is None else t.detach().double().cpu() for t in tensors]
    return values_and_gradients(sequential, wide, **options)


def scan(tensors: list, backend: str | None, **options) -> dict[str, Tensor]:
    """The same by the operator."""
    return values_and_gradients(ssd, tensors, backend=backend, **options)
