"""What the tests of the causal convolution share: cases, storages, a float64 yardstick and the comparison."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import causal_conv1d
from vmamba_kernels.causal_conv1d.compiled import missing
from vmamba_kernels.triton_support import missing as triton_missing

CPU_MISSING, CUDA_MISSING, TRITON_MISSING = missing("cpu"), missing("cuda"), triton_missing()
NO_GPU = not torch.cuda.is_available()
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Relative error of a result, by the type it is written in.
ROUNDING = {F32: 2e-6, BF16: 5e-3, F16: 7e-4}
LAYOUTS = ("channel_last", "channel_first", "sliced", "strided")


def _skipped(why: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skipif(bool(why), reason=why)]


_gpu = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU, reason="backend on 'cuda': torch sees no CUDA device")]
# (device, backend): every way to run the operator; those that cannot run here are skipped with their name. Triton runs
# on the GPU where there is one, and else in its interpreter.
REFERENCE = pytest.param(("cpu", "reference"), id="cpu-reference")
CPU = pytest.param(("cpu", "cpu"), id="cpu-cpu", marks=_skipped(CPU_MISSING))
CUDA = pytest.param(("cuda", "cuda"), id="cuda-cuda", marks=[*_gpu, *_skipped(CUDA_MISSING)])
TRITON = (
    pytest.param(("cpu", "triton"), id="cpu-triton", marks=_skipped(TRITON_MISSING))
    if NO_GPU
    else pytest.param(("cuda", "triton"), id="cuda-triton", marks=[*_gpu, *_skipped(TRITON_MISSING)])
)
BACKENDS = [REFERENCE, CPU, CUDA, TRITON]


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call. Without `reverse` flags there is one group; `own`: each group has its own x."""

    batch: int = 2
    channels: int = 12  # of a group
    length: int = 21
    width: int = 4
    reverse: tuple[bool, ...] = (False,)
    own: bool = False
    bias: bool = True
    silu: bool = True
    flip: bool = False

    def __str__(self) -> str:
        ways = "".join("b" if r else "f" for r in self.reverse)
        flags = ("own", self.own), ("nobias", not self.bias), ("linear", not self.silu), ("flip", self.flip)
        named = "".join(f"-{name}" for name, on in flags if on)
        return f"B{self.batch}C{self.channels}L{self.length}W{self.width}{ways}{named}"

    def tensors(self, dtype: torch.dtype = F32, layout: str = "channel_last", device: str = "cpu") -> list:
        """x, weight, bias, alike for every layout."""
        make = torch.Generator().manual_seed(self.length * 31 + self.channels)
        groups = len(self.reverse)
        x = torch.randn(self.batch, self.channels * (groups if self.own else 1), self.length, generator=make)
        weight = torch.randn(groups, self.channels, self.width, generator=make) * self.width**-0.5
        bias = torch.randn(groups, self.channels, generator=make) if self.bias else None
        if dtype is torch.float64:
            weight, bias = weight.double(), None if bias is None else bias.double()
        weights = [None if t is None else t.to(device) for t in (weight, bias)]
        return [lay_out(x.to(dtype), layout).to(device), *weights]

    def call(self, tensors: list, backend: str | None = None) -> Tensor:
        x, weight, bias = tensors
        options = {"reverse": self.reverse, "flip_output": self.flip, "backend": backend}
        return causal_conv1d(x, weight, bias, "silu" if self.silu else None, **options)

    def plain(self, tensors: list) -> Tensor:
        """The same by torch's own convolution and flips."""
        x, weight, bias = tensors
        outputs = []
        for g, is_reversed in enumerate(self.reverse):
            part = x[:, g * self.channels : (g + 1) * self.channels] if self.own else x
            part = F.pad(part.flip(-1) if is_reversed else part, (self.width - 1, 0))
            y = F.conv1d(part, weight[g][:, None], None if bias is None else bias[g], groups=self.channels)
            y = F.silu(y) if self.silu else y
            outputs.append(y.flip(-1) if is_reversed and not self.flip else y)
        return torch.cat(outputs, 1)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """x with the same values in another storage. A copy to another device keeps those that are dense only."""
    if layout == "channel_last":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":  # half of a wider channel-last tensor, from an odd address on
        return torch.cat([x[:, :1], x, x], 1).transpose(1, 2).contiguous().transpose(1, 2)[:, 1 : x.shape[1] + 1]
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return x.contiguous()


def results(function, tensors: list, seed: int = 5) -> dict[str, Tensor]:
    """y and the gradient of every argument, under a fixed gradient of y."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = function(leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(tensors[0].dtype).to(y.device, y.dtype)
    names = [name for name, t in zip(("dx", "dweight", "dbias"), leaves) if t is not None]
    grads = torch.autograd.grad(y, [t for t in leaves if t is not None], dy)
    return {"y": y.detach(), **dict(zip(names, grads, strict=True))}


def exact(case: Case, tensors: list) -> dict[str, Tensor]:
    """The same by torch's convolution in float64 on the CPU; the gradient of y is rounded as in `results`."""
    dtype = tensors[0].dtype
    leaves = [None if t is None else t.detach().cpu().double().requires_grad_() for t in tensors]
    y = case.plain(leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5)).to(dtype).double()
    names = [name for name, t in zip(("dx", "dweight", "dbias"), leaves) if t is not None]
    grads = torch.autograd.grad(y, [t for t in leaves if t is not None], dy)
    return {"y": y.detach(), **dict(zip(names, grads, strict=True))}


def assert_close(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every tensor within the rounding of its type; the message names the tensor."""
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        want = expected[name]
        assert value.shape == want.shape, name
        floor = 0.1 * want.numel() ** 0.5
        error = float((value.double().cpu() - want).norm() / want.norm().clamp_min(floor))
        bound = ROUNDING.get(value.dtype, 1e-12)
        assert error <= bound, f"{name}: relative error {error:.2e} is above {bound:.0e}"
