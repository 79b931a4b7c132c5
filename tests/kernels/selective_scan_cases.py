"""What the tests of the selective scan share: a sequential float64 scan, the cases, the backends and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import native, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
LAYOUTS = ("channel_last", "channel_first", "strided")

needs_cpu_library = pytest.mark.skipif(
    not native.load("cpu").loaded, reason=f"backend 'cpu': {native.load('cpu').reason}"
)
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="backend on 'cuda': torch sees no CUDA device"),
]
# (device, backend): every way to run the operator; those that cannot run here are skipped with their name.
BACKENDS = [
    pytest.param(("cpu", "reference"), id="cpu-reference"),
    pytest.param(("cpu", "cpu"), id="cpu-cpu", marks=needs_cpu_library),
    pytest.param(("cuda", None), id="cuda", marks=needs_gpu),
    pytest.param(("cuda", "triton"), id="cuda-triton", marks=needs_gpu),
]


def sequential(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """y and the last state by one loop over time, in the type of the arguments; gradients by autograd."""
    raw = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = (F.softplus(raw, threshold=20.0) if delta_softplus else raw).repeat_interleave(u.shape[1] // delta.shape[1], 1)
    B = B.repeat_interleave(u.shape[1] // B.shape[1], 1)
    C = C.repeat_interleave(u.shape[1] // C.shape[1], 1)
    h = A.new_zeros(u.shape[0], *A.shape)
    steps = []
    for t in range(u.shape[2]):
        h = torch.exp(dt[:, :, t, None] * A) * h + (dt[:, :, t] * u[:, :, t])[..., None] * B[..., t]
        steps.append((h * C[..., t]).sum(-1))
    y = torch.stack(steps, -1)
    return (y if D is None else y + D[:, None] * u), h


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call; `shared` channels of u to a channel of delta."""

    batch: int = 2
    groups: int = 2
    group_channels: int = 12
    d_state: int = 1
    length: int = 65
    shared: int = 1
    optional: bool = True
    softplus: bool = True

    def __str__(self) -> str:
        extra = ("" if self.optional else "-plain") + ("" if self.softplus else "-nosoftplus")
        shared = f"-shared{self.shared}" if self.shared > 1 else ""
        return f"B{self.batch}K{self.groups}D{self.group_channels}N{self.d_state}L{self.length}{shared}{extra}"

    def tensors(self, dtype: torch.dtype = torch.float32, layout: str = "channel_last", device: str = "cpu") -> list:
        """u, delta, A, B, C, D, delta_bias, alike for every layout; in float32 but for what `dtype` rules."""
        make = torch.Generator().manual_seed(7)
        channels = self.groups * self.group_channels
        small = 1.0 if self.softplus else 0.2

        def sequence(count: int, scale: float = 1.0) -> Tensor:
            return torch.randn(self.batch, count, self.length, generator=make) * scale

        def projection() -> Tensor:
            return torch.randn(self.batch, self.groups, self.d_state, self.length, generator=make)

        u, delta = sequence(channels), sequence(channels // self.shared, small)
        delta = delta if self.softplus else delta.abs()
        A = -torch.rand(channels, self.d_state, generator=make) * 2 - 0.05
        B, C = projection(), projection()
        D = torch.randn(channels, generator=make) if self.optional else None
        bias = torch.rand(channels // self.shared, generator=make) * small if self.optional else None
        inputs = [lay_out(x.to(dtype).to(device), layout) for x in (u, delta, B, C)]
        A, D, bias = (None if x is None else x.to(device) for x in (A, D, bias))
        if dtype is torch.float64:
            A, D, bias = (None if x is None else x.double() for x in (A, D, bias))
        return [inputs[0], inputs[1], A, inputs[2], inputs[3], D, bias]


def lay_out(x: Tensor, layout: str) -> Tensor:
    """x with the same values in another storage."""
    if layout == "channel_last":
        return x.movedim(-1, 1).contiguous().movedim(1, -1)
    if layout == "channel_first":
        return x.contiguous()
    return torch.stack([x, x], -1)[..., 0]


def values_and_gradients(function: Callable[..., tuple[Tensor, Tensor]], tensors: list, **options) -> dict[str, Tensor]:
    """y, last_state and the gradient of every argument, under fixed gradients of y and of the last state."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    y, last = function(*leaves, **options)
    make = torch.Generator().manual_seed(11)
    dy = torch.randn(y.shape, generator=make).to(y.device, y.dtype)
    dlast = torch.randn(last.shape, generator=make).to(last.device, last.dtype)
    present = [(name, x) for name, x in zip(NAMES, leaves) if x is not None]
    gradients = torch.autograd.grad([y, last], [x for _, x in present], [dy, dlast])
    return {"y": y.detach(), "last_state": last.detach()} | {
        f"d{name}": gradient for (name, _), gradient in zip(present, gradients)
    }


def exact(tensors: list, softplus: bool = True) -> dict[str, Tensor]:
    """The same by the sequential scan in float64 on the CPU."""
    wide = [None if x is None else x.detach().double().cpu() for x in tensors]
    return values_and_gradients(sequential, wide, delta_softplus=softplus)


def scan(tensors: list, backend: str | None, **options) -> dict[str, Tensor]:
    """The same by the operator."""
    return values_and_gradients(selective_scan, tensors, return_last_state=True, backend=backend, **options)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected; a sum that cancels is measured against its terms' size."""
    expected = expected.double().cpu()
    floor = 0.1 * expected.numel() ** 0.5
    return ((ours.double().cpu() - expected).norm() / expected.norm().clamp_min(floor)).item()


def assert_close(ours: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    """Every tensor within a relative error; the message names the tensor."""
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert value.shape == expected[name].shape, name
        error = relative_error(value, expected[name])
        assert error <= bound, f"{name}: relative error {error:.2e} is above {bound:.0e}"
