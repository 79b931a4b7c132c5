"""The CUDA ss2d compiled by g++ and run without a GPU: parity with float64, every way to cut it up, and sanitizers."""

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

from vmamba_kernels import scan_order
from vmamba_kernels.selective_scan import reference as scan_reference
from vmamba_kernels.ss2d import reference
from vmamba_kernels.ss2d.arguments import Inputs
from vmamba_kernels.ss2d.sequences import padded_map

from .emulated_program import ROUNDING, TYPES, run_cases

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the CUDA kernels with")
PLAN = ("width", "threads", "sums", "backward_width", "backward_threads", "backward_sums", "tallies", "groups")


@dataclass
class Case:
    """One ss2d: sizes, order, types, layouts (a letter for x and dout: f channel-first, l channel-last), machine."""

    size: tuple[int, int] = (5, 7)
    batch: int = 1
    channels: int = 8
    states: int = 1
    rank: int = 3
    order: str = "cross2d"
    dtype: torch.dtype = torch.float32
    layout: str = "ll"
    low_out: bool = False
    low_dout: bool = False
    weights: bool = True  # D and delta_bias
    shared: int = 227 << 10  # bytes of shared memory that a block may have
    processors: int = 1
    atomics: bool = False
    plan: dict[str, int] = field(default_factory=dict)  # what the case is cut into, where it matters
    tensors: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    @property
    def length(self) -> int:
        return self.size[0] * self.size[1]

    def fill(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        maps = scan_order(self.order, *self.size)
        K, C, R, N = len(maps), self.channels, self.rank, self.states

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g)

        def image(layout: str, low: bool) -> Tensor:
            x = random(self.batch, C, self.length).to(self.dtype if low else torch.float32)
            return x.transpose(1, 2).contiguous().transpose(1, 2) if layout == "l" else x

        self.tensors = {
            "x": image(self.layout[0], True),
            "x_dbl": random(self.batch, self.length, K * (R + 2 * N)).to(self.dtype).transpose(1, 2),
            "dt_weight": random(K, C, R) * R**-0.5,
            "A": -torch.rand(K * C, N, generator=g) * 2,
            "D": random(K * C) if self.weights else None,
            "delta_bias": random(K * C) - 1 if self.weights else None,
            "maps": padded_map(self.order, *self.size, torch.device("cpu")),
            "dout": image(self.layout[1], self.low_dout),
        }

    def write(self, file) -> None:
        t = self.tensors
        sizes = [TYPES[self.dtype], self.batch, self.channels, self.length, len(t["maps"]), self.rank, self.states]
        sizes += [not self.low_out, not self.low_dout, self.shared, self.processors, self.atomics]
        strides = [*t["x"].stride(), *t["dout"].stride(), *t["x_dbl"].stride()]
        file.write(struct.pack(f"<{len(sizes) + len(strides)}q", *sizes, *strides))
        for tensor in t.values():
            raw = b"" if tensor is None else bytes(tensor.untyped_storage())
            file.write(struct.pack("<2q", -1 if tensor is None else len(raw), 0) + raw)

    def read(self, file) -> dict[str, Tensor]:
        t = self.tensors
        KC, f32 = len(t["A"]), torch.float32

        def take(shape: tuple[int, ...], dtype: torch.dtype = f32, like: Tensor | None = None) -> Tensor:
            raw = file.read(torch.Size(shape).numel() * dtype.itemsize)
            x = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            return x.as_strided(shape, like.stride()) if like is not None else x.view(shape)

        image = tuple(t["x"].shape)
        results = {
            "y": take(image, self.dtype if self.low_out else f32, t["x"]),
            "states": take((self.batch, (self.length + 31) // 32 - 1, self.states, KC)),
            "dx": take(image, self.dtype, t["x"]),
            "dx_dbl": take(tuple(t["x_dbl"].shape), self.dtype, t["x_dbl"]),
            "d_dt_weight": take(tuple(t["dt_weight"].shape)),
            "dA": take((KC, self.states)),
        }
        if self.weights:
            results |= {"dD": take((KC,)), "d_delta_bias": take((KC,))}
        cut = dict(zip(PLAN, struct.unpack("<8q", file.read(64)), strict=True))
        assert {name: cut[name] for name in self.plan} == self.plan, f"{self} is cut into {cut}"
        return results

    def expect(self) -> dict[str, Tensor]:
        H, W = self.size
        t = {name: None if x is None else x.double() for name, x in self.tensors.items()}
        images = [t[name].unflatten(2, (H, W)) for name in ("x", "x_dbl", "dout")]
        inputs = Inputs(*images[:2], t["dt_weight"], t["A"], t["D"], t["delta_bias"], self.order, True)
        kept = {"chunk_length": lambda *_: 32, "stored_states": lambda length, *_: (length + 31) // 32 - 1}
        with patch.multiple(scan_reference, **kept):
            y, states = reference.forward(inputs, torch.float64, True)
            dx, dx_dbl, *weights = reference.backward(images[2], inputs, states)
        names = ("d_dt_weight", "dA", "dD", "d_delta_bias")
        flat = {"y": y.flatten(2), "states": states, "dx": dx.flatten(2), "dx_dbl": dx_dbl.flatten(2)}
        return flat | dict(zip(names, weights, strict=True))


def run(kind: str, cases: list[Case], folder: Path) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Tensor]]]:
    for seed, case in enumerate(cases):
        case.fill(seed)
    return run_cases(kind, "run_ss2d_cases", cases, folder)


def compare(case: Case, got: dict[str, Tensor]) -> None:
    expected = case.expect()
    for name, x in got.items():
        want = expected[name]
        assert x.shape == want.shape, name
        if want.numel():
            error = float((x.double() - want).norm() / want.norm().clamp_min(1e-30))
            assert error <= ROUNDING[x.dtype], f"{name} of {case}: relative error {error:.2e}"


BF16, F16 = torch.bfloat16, torch.float16
WIDE = {"width": 32, "backward_width": 32}
CASES = [
    *(Case(size=(1, n), channels=3, rank=1) for n in (1, 2, 7, 8, 9, 31, 33, 64)),
    Case(size=(9, 1), channels=1, rank=2, order="bidi"),
    Case(size=(14, 14), channels=40, rank=6, dtype=BF16, plan=WIDE),
    Case(size=(17, 33), channels=16, rank=6, order="unidi"),
    Case(size=(13, 11), channels=33, rank=5, order="rows", dtype=BF16, weights=False, low_dout=True),
    Case(size=(12, 9), channels=20, rank=7, order="rot90", layout="fl"),
    Case(size=(12, 9), batch=2, channels=20, rank=7, order="cascade2d", layout="lf", dtype=F16),
    Case(size=(6, 11), batch=2, channels=33, states=3, rank=4),
    Case(size=(10, 10), batch=2, channels=40, states=16, rank=12, dtype=BF16),
    Case(size=(5, 9), channels=12, states=16, rank=1, order="bidi", layout="ff", weights=False),
    Case(size=(40, 1), channels=17, states=40, rank=3, order="columns_both"),
    Case(size=(13, 13), channels=12, rank=90, shared=22 << 10, plan={"sums": 0, "backward_sums": 0, "tallies": 0}),
    Case(size=(11, 13), channels=64, rank=6, processors=16, plan={"width": 8, "backward_width": 8}),
    Case(size=(11, 13), batch=2, channels=70, rank=6, processors=2, plan={"groups": 2, "backward_width": 32}),
    Case(size=(6, 11), channels=70, rank=6, processors=2, atomics=True, plan={"groups": 3}),
    Case(size=(6, 7), channels=40, states=3, rank=2, processors=2, dtype=BF16, atomics=True, plan={"groups": 2}),
]
LARGE = [
    Case(size=(7, 7), batch=3, channels=70, rank=48, dtype=F16, low_out=True, low_dout=True, plan=WIDE),
    Case(size=(6, 6), channels=6, states=256, rank=2, shared=99 << 10),
    Case(size=(24, 24), channels=35, rank=6, shared=96 << 10, plan={"width": 32, "sums": 1, "backward_sums": 1}),
    Case(size=(40, 40), channels=5, rank=6, shared=96 << 10, plan={"width": 8, "backward_width": 8}),
    Case(size=(31, 30), channels=20, rank=6, shared=40 << 10, plan={"width": 8, "backward_width": 8}),
    Case(size=(24, 24), channels=40, rank=6, shared=48 << 10, dtype=BF16),
    Case(size=(24, 25), channels=20, states=5, rank=6, shared=18 << 10, plan={"sums": 0, "backward_sums": 0}),
]
SANITIZED = [
    Case(size=(5, 9), channels=40, rank=5, dtype=BF16, order="rows_both"),
    Case(size=(7, 7), batch=2, channels=9, rank=3, dtype=BF16, layout="fl", order="rows_both"),
    Case(size=(5, 7), channels=12, rank=2, states=3, dtype=BF16, shared=5632, order="rows_both", plan={"tallies": 0}),
    Case(size=(4, 9), channels=10, rank=33, dtype=BF16, processors=4, low_out=True, order="rows_both"),
    Case(size=(4, 9), channels=40, rank=2, dtype=BF16, processors=2, atomics=True, order="rows_both"),
]


@pytest.mark.parametrize("cases", [CASES, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["small", "large"])
def test_every_case_agrees_with_float64(cases, tmp_path):
    done, results = run("plain", cases, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for case, got in zip(cases, results, strict=True):
        compare(case, got)


@pytest.mark.parametrize("kind", ["tsan", pytest.param("asan", marks=pytest.mark.slow)])
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
    assert "ss2d_forward" in done.stderr and "ss2d_backward" in done.stderr
