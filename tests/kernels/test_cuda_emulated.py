"""The CUDA selective scan compiled by g++ and run without a GPU: parity with float64, and sanitizers."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from vmamba_kernels.selective_scan import reference

from .emulated_program import ROUNDING, TYPES, run_cases

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the CUDA kernels with")


@dataclass
class Case:
    """One scan: sizes, types, layouts (a letter for u, delta, dout: f channel-first, l channel-last), options."""

    batch: int = 1
    groups: int = 1
    channels: int = 8  # of a group
    states: int = 1
    length: int = 49
    ratio: int = 1
    dtype: torch.dtype = torch.float32
    layout: str = "fff"
    low_out: bool = False
    low_dout: bool = False
    softplus: bool = True
    weights: bool = True  # D and delta_bias
    dlast: bool = True
    segments: int = 0
    atomics: bool = False
    offset: int = 0  # elements by which u and delta are out of line
    scale: float = 1.0
    tensors: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    def fill(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        kd = self.groups * self.channels
        dd = kd // self.ratio

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        def low(x: Tensor, layout: str = "f") -> Tensor:
            x = x.to(self.dtype)
            return x.transpose(1, 2).contiguous().transpose(1, 2) if layout == "l" else x

        dout = random(self.batch, kd, self.length)
        self.tensors = {
            "u": low(random(self.batch, kd, self.length), self.layout[0]),
            "delta": low(self.scale * random(self.batch, dd, self.length) - 1, self.layout[1]),
            "A": -torch.rand(kd, self.states, generator=g) * 2,
            "B": low(random(self.batch, self.groups, self.states, self.length)),
            "C": low(random(self.batch, self.groups, self.states, self.length)),
            "D": random(kd) if self.weights else None,
            "bias": random(dd) if self.weights else None,
            "dout": (low(dout) if self.low_dout else dout) if self.layout[2] == "f" else
            (low(dout, "l") if self.low_dout else dout.transpose(1, 2).contiguous().transpose(1, 2)),
            "dlast": random(self.batch, kd, self.states) if self.dlast else None,
        }  # fmt: skip

    def write(self, file) -> None:
        t = self.tensors
        u, delta, dout, B, C = (t[name] for name in ("u", "delta", "dout", "B", "C"))
        sizes = [TYPES[self.dtype], self.batch, self.groups, self.channels, delta.shape[1], self.states, self.length]
        sizes += [self.softplus, not self.low_out, not self.low_dout, self.segments, self.atomics]
        strides = [*u.stride(), *delta.stride(), *dout.stride(), *B.stride(), *C.stride()]
        file.write(struct.pack(f"<{len(sizes) + len(strides)}q", *sizes, *strides))
        for name, tensor in t.items():
            if tensor is None:
                file.write(struct.pack("<2q", -1, 0))
                continue
            raw = bytes(tensor.untyped_storage())
            offset = self.offset * tensor.element_size() if name in ("u", "delta") else 0
            file.write(struct.pack("<2q", len(raw), offset) + raw)

    def read(self, file) -> dict[str, Tensor]:
        t = self.tensors
        kd = self.groups * self.channels
        chunks = (self.length + 31) // 32 - 1

        def take(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "f") -> Tensor:
            if layout == "l":
                shape = (shape[0], shape[2], shape[1])
            raw = file.read(torch.Size(shape).numel() * dtype.itemsize)
            x = torch.frombuffer(bytearray(raw), dtype=dtype).view(shape) if raw else torch.empty(shape, dtype=dtype)
            return x.transpose(1, 2) if layout == "l" else x

        sequence, f32 = (self.batch, kd, self.length), torch.float32
        channel_last = ["l" if t[n].stride(1) == 1 and t[n].stride(2) != 1 else "f" for n in ("u", "delta")]
        results = {
            "out": take(sequence, self.dtype if self.low_out else f32, channel_last[0]),
            "last_state": take((self.batch, kd, self.states), f32),
            "states": take((self.batch, chunks, self.states, kd), f32),
            "du": take(sequence, self.dtype, channel_last[0]),
            "ddelta": take(tuple(t["delta"].shape), self.dtype, channel_last[1]),
            "dA": take((kd, self.states), f32),
            "dB": take(tuple(t["B"].shape), self.dtype),
            "dC": take(tuple(t["C"].shape), self.dtype),
        }
        if self.weights:
            results |= {"dD": take((kd,), f32), "dbias": take((kd // self.ratio,), f32)}
        return results

    def expect(self) -> dict[str, Tensor]:
        wide = {name: None if x is None else x.double() for name, x in self.tensors.items()}
        inputs = [wide[name] for name in ("u", "delta", "A", "B", "C", "D", "bias")]
        kept = {"chunk_length": lambda *_: 32, "stored_states": lambda length, *_: (length + 31) // 32 - 1}
        with patch.multiple(reference, **kept):
            out, last, states = reference.forward(*inputs, self.softplus, torch.float64, True)
            grads = reference.backward(wide["dout"], wide["dlast"], *inputs, states, self.softplus)
        names = ("du", "ddelta", "dA", "dB", "dC", "dD", "dbias")
        return {"out": out, "last_state": last, "states": states, **dict(zip(names, grads, strict=True))}


def run(kind: str, cases: list[Case], folder: Path) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Tensor]]]:
    for seed, case in enumerate(cases):
        case.fill(seed)
    return run_cases(kind, "run_cases", cases, folder)


def compare(case: Case, got: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors by name, in units of what the type of each result allows."""
    errors = {}
    expected = case.expect()
    for name, x in got.items():
        want = expected[name]
        assert x.shape == want.shape, name
        if not want.numel():
            continue
        error = float((x.double() - want).norm() / want.norm().clamp_min(1e-30))
        errors[name] = error / ROUNDING[x.dtype]
        assert errors[name] <= 1, f"{name} of {case}: relative error {error:.2e}"
    return errors


BF16, F16 = torch.bfloat16, torch.float16
CASES = [
    *(Case(length=n, channels=3) for n in (1, 2, 7, 8, 9, 31, 32, 33, 64, 65)),
    Case(batch=2, groups=2, channels=40, length=49, dtype=BF16),
    Case(batch=2, groups=2, channels=40, length=49, dtype=BF16, layout="lll"),
    Case(groups=2, channels=96, length=50),
    Case(channels=160, length=36),
    Case(channels=160, length=36, states=3, layout="lll"),
    Case(batch=2, groups=2, channels=160, length=70, segments=2, atomics=True),
    Case(batch=2, channels=130, length=36, states=3, dtype=BF16, atomics=True),
    Case(batch=2, channels=32, length=98, layout="lfl"),
    Case(batch=2, channels=32, length=98, layout="flf", dtype=F16, low_out=True, low_dout=True),
    Case(channels=12, length=100, ratio=3, groups=2),
    Case(channels=12, length=37, ratio=24, groups=2, dtype=BF16, layout="lll"),
    Case(channels=40, length=37, ratio=4, layout="lll", low_dout=True, dtype=BF16),
    Case(channels=5, length=200, segments=3),
    Case(batch=2, channels=33, length=130, segments=4, states=2, layout="lll", dtype=F16),
    Case(channels=6, length=70, states=16, groups=2),
    Case(channels=34, length=66, states=16, dtype=BF16, low_out=True, low_dout=True),
    Case(channels=34, length=40, states=16, dtype=BF16, layout="lll"),
    Case(channels=4, length=66, states=17, segments=2),
    Case(channels=2, length=130, states=40),
    Case(channels=2, length=9, states=256),
    Case(channels=4, length=40, offset=1, dtype=BF16),
    Case(channels=4, length=40, offset=1, layout="lll", dtype=BF16),
    Case(channels=7, length=40, layout="lll", groups=2),
    Case(channels=8, length=44, softplus=False, scale=0.1, weights=False, dlast=False),
    Case(channels=8, length=44, weights=False, dtype=F16),
    Case(channels=8, length=60, scale=30.0),
]
SANITIZED = [
    Case(batch=2, channels=70, length=49),
    Case(channels=40, groups=2, length=41, layout="lll"),
    Case(channels=36, length=70, states=3, segments=2),
    Case(channels=33, length=35, dtype=BF16, low_out=True, low_dout=True),
    Case(channels=6, length=34, ratio=3, states=17),
    Case(channels=33, length=33, dtype=F16, layout="lll", offset=1),
    Case(channels=130, length=33, atomics=True),
]


def test_every_case_agrees_with_float64(tmp_path):
    done, results = run("plain", CASES, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for case, got in zip(CASES, results, strict=True):
        compare(case, got)


@pytest.mark.parametrize("kind", ["asan", pytest.param("tsan", marks=pytest.mark.slow)])
def test_the_sanitizers_find_nothing(kind, tmp_path):
    done, results = run(kind, SANITIZED, tmp_path)
    assert done.returncode == 0, done.stderr[:3000]
    for case, got in zip(SANITIZED, results, strict=True):
        compare(case, got)


@pytest.mark.slow
def test_a_missing_barrier_is_found(tmp_path):
    done, _ = run("tsan-planted", SANITIZED[:1], tmp_path)
    assert done.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "scan_backward" in done.stderr
