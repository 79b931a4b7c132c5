"""The CUDA kernels of the pooled scan compiled by g++ and run without a GPU: parity with float64, and sanitizers."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vmamba_kernels.pooled_scan.tokens import token_axes

from .emulated_program import ROUNDING, TYPES, run_program
from .pooled_scan_cases import NAMES, Case, definition

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the CUDA kernels with")
BF16, F16 = torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Run:
    """One case of the harness: its type, the layout of u_full and y, and how the work is cut."""

    case: Case
    dtype: torch.dtype = torch.float32
    layout: str = "channel_last"
    low_y: bool = False
    processors: int = 1
    offset: int = 0  # elements by which u_full is out of line

    def tensors(self, seed: int) -> dict[str, Tensor | None]:
        case = self.case
        found = dict(zip(NAMES, case.tensors(self.dtype, "channel_last"), strict=True))
        if self.layout == "channel_first":
            found["u_full"] = found["u_full"].contiguous()
        make = torch.Generator().manual_seed(seed)
        width = case.width * (1 if case.average else case.groups)
        dy = torch.randn(case.batch, width, found["u_full"].shape[2], generator=make)
        dy = dy.to(self.dtype if self.low_y else torch.float32)
        last = self.layout == "channel_last"
        found["dy"] = dy.transpose(1, 2).contiguous().transpose(1, 2) if last else dy
        return found

    def write(self, file, t: dict[str, Tensor | None]) -> None:
        case = self.case
        tokens = token_axes(t["u_full"].shape[2], case.steps(), case.grid, case.pooled_axes)
        mask = sum(1 << group for group, back in enumerate(case.reverse) if back)
        sizes = [TYPES[self.dtype], case.batch, case.groups, case.width, t["delta"].shape[1], case.d_state, *tokens]
        sizes += [mask, case.softplus, case.average, not self.low_y, self.processors]
        full = t["u_full"].unflatten(1, (case.groups, case.width))
        strides = [*full.stride(), *t["dy"].stride(), *t["u_pooled"].stride(), *t["delta"].stride()]
        strides += [*t["B"].stride(), *t["C"].stride()]
        file.write(struct.pack(f"<{len(sizes) + len(strides)}q", *sizes, *strides))
        for name, tensor in t.items():
            if tensor is None:
                file.write(struct.pack("<2q", -1, 0))
                continue
            raw = bytes(tensor.untyped_storage())
            offset = self.offset * tensor.element_size() if name == "u_full" else 0
            file.write(struct.pack("<2q", len(raw), offset) + raw)

    def read(self, file, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
        def take(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
            result = torch.empty_strided(like.shape, like.stride(), dtype=dtype or like.dtype)
            raw = file.read(result.untyped_storage().nbytes())
            flat = torch.frombuffer(bytearray(raw), dtype=result.dtype) if raw else result.flatten()
            return flat.as_strided(like.shape, like.stride())

        results = {"y": take(t["dy"])}
        for name in NAMES:
            if t[name] is not None and (name != "u_full" or t["D"] is not None):
                results[f"d{name}"] = take(t[name])
        return results

    def expect(self, t: dict[str, Tensor | None]) -> dict[str, Tensor]:
        leaves = [None if t[name] is None else t[name].double().requires_grad_() for name in NAMES]
        y = definition(self.case, *leaves)
        present = [(name, x) for name, x in zip(NAMES, leaves) if x is not None]
        grads = torch.autograd.grad(y, [x for _, x in present], t["dy"].double(), allow_unused=True)
        return {"y": y.detach(), **{f"d{name}": g for (name, _), g in zip(present, grads)}}


def run(kind: str, runs: list[Run], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the harness; where it ends well, compare every result."""
    tensors = [one.tensors(seed) for seed, one in enumerate(runs)]
    with open(folder / "cases", "wb") as file:
        for one, t in zip(runs, tensors, strict=True):
            one.write(file, t)
    done = run_program(kind, "run_pooled_cases", folder / "cases", folder / "results")
    if done.returncode == 0:
        with open(folder / "results", "rb") as file:
            for one, t in zip(runs, tensors, strict=True):
                got, expected = one.read(file, t), one.expect(t)
                for name, x in got.items():
                    error = float((x.double() - expected[name]).norm() / expected[name].norm().clamp_min(1e-30))
                    assert error <= ROUNDING[x.dtype], f"{name} of {one}: relative error {error:.2e}"
            assert not file.read(1)
    return done


RUNS = [
    Run(Case(width=8)),
    Run(Case(width=8), layout="channel_first"),
    Run(Case(grid=(3, 7), pooled_axes=(0,), width=17, d_state=1), processors=40),
    Run(Case(grid=(3, 7), pooled_axes=(0,), width=17, d_state=1), layout="channel_first"),
    Run(Case(average=False, d_state=3, reverse=(True, False), width=40), BF16),
    Run(Case(average=False, d_state=3, reverse=(True, False), width=6), F16, "channel_first", low_y=True),
    Run(Case(grid=(3, 4, 2), pooled_axes=(1,), reverse=(True, True), width=16), BF16, low_y=True, processors=3),
    Run(Case(grid=(3, 2, 4), pooled_axes=(0, 2), width=5, shared=5), layout="channel_first"),
    Run(Case(grid=(3, 2, 2), pooled_axes=(0, 2), width=12, shared=3), F16),
    Run(Case(grid=(2, 3, 2), pooled_axes=(0, 1), groups=1, reverse=(True,), optional=False)),
    Run(Case(grid=(70, 2), width=33, d_state=16, batch=1)),
    Run(Case(grid=(40, 3), width=34, d_state=2, batch=1), BF16, low_y=True),
    Run(Case(skip=False, width=12), BF16),
    Run(Case(skip=False, width=3, average=False), layout="channel_first"),
    Run(Case(width=8), BF16, offset=1),
    Run(Case(width=8), BF16, "channel_first", offset=4),
    Run(Case(grid=(14, 14), width=40, d_state=16, batch=1), BF16, processors=132),
    Run(Case(grid=(4, 8), width=8, batch=1), BF16, "channel_first", low_y=True),
]
SANITIZED = [RUNS[i] for i in (0, 1, 2, 5, 7, 8, 14)]


def test_every_case_agrees_with_float64(tmp_path):
    done = run("plain", RUNS, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_the_sanitizers_find_nothing(kind, tmp_path):
    done = run(kind, SANITIZED, tmp_path)
    assert done.returncode == 0, done.stderr[:3000]


def test_a_missing_barrier_is_found(tmp_path):
    done = run("tsan-planted", SANITIZED[:1], tmp_path)
    assert done.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "add_rows" in done.stderr
