"""The CUDA causal convolution compiled by g++ and run without a GPU: parity with float64, and sanitizers."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from .causal_conv1d_cases import BF16, F16, F32, assert_close, exact, lay_out
from .causal_conv1d_cases import Case as Call
from .emulated_program import TYPES, run_cases

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the CUDA kernels with")


@dataclass
class Case:
    """One call, the storage of x and dout, and how many elements these two are out of line."""

    call: Call
    dtype: torch.dtype = F32
    layout: str = "channel_last"
    offset: int = 0
    tensors: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    def fill(self) -> None:
        x, weight, bias = self.call.tensors(self.dtype, self.layout)
        make = torch.Generator().manual_seed(5)
        shape = (x.shape[0], len(self.call.reverse) * self.call.channels, x.shape[2])
        dout = lay_out(torch.randn(shape, generator=make).to(self.dtype), self.layout)
        self.tensors = {"x": x, "weight": weight, "bias": bias, "dout": dout}

    @property
    def last(self) -> bool:
        return self.layout != "channel_first"

    def write(self, file) -> None:
        c, x, dout = self.call, self.tensors["x"], self.tensors["dout"]
        bits = sum(1 << g for g, r in enumerate(c.reverse) if r)
        sizes = [TYPES[self.dtype], c.batch, len(c.reverse), c.channels, c.length, c.width, bits, c.flip, c.silu]
        sizes += [x.shape[1] == c.channels, self.last, *x.stride(), *dout.stride()]
        file.write(struct.pack(f"{len(sizes)}q", *sizes))
        for name, t in self.tensors.items():
            if t is None:
                file.write(struct.pack("2q", -1, 0))
                continue
            # From the tensor's first element to its last, gaps of strides included.
            count = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            stored = torch.as_strided(t.detach(), (count,), (1,)).clone()
            offset = self.offset * t.itemsize if name in ("x", "dout") else 0
            raw = stored.view(torch.uint8).numpy().tobytes()
            file.write(struct.pack("2q", len(raw), offset) + raw)

    def read(self, file) -> dict[str, Tensor]:
        c, groups = self.call, len(self.call.reverse)

        def take(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            raw = file.read(torch.Size(shape).numel() * dtype.itemsize)
            return torch.frombuffer(bytearray(raw), dtype=dtype).view(shape)

        def sequence(channels: int) -> Tensor:
            if self.last:
                return take((c.batch, c.length, channels), self.dtype).transpose(1, 2)
            return take((c.batch, channels, c.length), self.dtype)

        found = {"y": sequence(groups * c.channels), "dx": sequence(self.tensors["x"].shape[1])}
        found["dweight"] = take((groups, c.channels, c.width), F32)
        if c.bias:
            found["dbias"] = take((groups, c.channels), F32)
        return found

    def expect(self) -> dict[str, Tensor]:
        return exact(self.call, [self.tensors[name] for name in ("x", "weight", "bias")])


def run(kind: str, cases: list[Case], folder: Path) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Tensor]]]:
    for case in cases:
        case.fill()
    return run_cases(kind, "run_conv1d_cases", cases, folder)


BOTH = (False, True)
DENSE = ("channel_last", "channel_first")
CASES = [
    *(Case(Call(length=n, channels=3, reverse=BOTH), layout=s) for n in (1, 2, 5, 8, 17) for s in DENSE),
    *(Case(Call(length=n, channels=40, reverse=BOTH, flip=True), dtype=t, layout=s)
      for n, t in ((37, BF16), (50, F16)) for s in DENSE),
    Case(Call(length=40, channels=136, reverse=BOTH)),
    Case(Call(length=150, channels=8, reverse=BOTH, batch=1)),
    Case(Call(length=270, channels=3, reverse=BOTH, batch=1, flip=True), layout="channel_first"),
    Case(Call(length=530, channels=2, reverse=(True,), batch=2), layout="channel_first", dtype=BF16),
    Case(Call(length=24, channels=16, reverse=(True, False, True), own=True, flip=True), dtype=BF16),
    Case(Call(length=24, channels=16, reverse=(True, False, True), own=True), layout="channel_first", dtype=BF16),
    Case(Call(length=23, channels=20, silu=False, bias=False, reverse=(True,))),
    Case(Call(length=23, channels=5, silu=False, bias=False), layout="channel_first"),
    *(Case(Call(length=30, channels=70, width=w, reverse=BOTH), dtype=BF16) for w in (1, 3, 8)),
    *(Case(Call(length=30, channels=4, width=w, reverse=BOTH), layout="channel_first") for w in (2, 5, 8)),
    Case(Call(length=20, channels=66, width=6, reverse=BOTH)),
    Case(Call(length=21, channels=12, reverse=BOTH), dtype=BF16, layout="sliced"),
    Case(Call(length=21, channels=12, reverse=BOTH), dtype=BF16, offset=1),
    Case(Call(length=40, channels=3, reverse=BOTH), dtype=BF16, offset=3, layout="channel_first"),
]  # fmt: skip
SANITIZED = [
    Case(Call(length=37, channels=36, reverse=BOTH, batch=1)),
    Case(Call(length=21, channels=10, reverse=BOTH, flip=True, width=3, batch=1), dtype=BF16),
    Case(Call(length=35, channels=3, reverse=BOTH, batch=1), dtype=BF16, layout="channel_first"),
    Case(Call(length=35, channels=3, reverse=BOTH, flip=True, width=8), layout="channel_first", offset=1),
    Case(Call(length=18, channels=5, own=True, reverse=BOTH, batch=1), dtype=F16, layout="sliced", offset=1),
]


def test_every_case_agrees_with_float64(tmp_path):
    done, results = run("plain", CASES, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for case, got in zip(CASES, results, strict=True):
        try:
            assert_close(got, case.expect())
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None


@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_the_sanitizers_find_nothing(kind, tmp_path):
    done, results = run(kind, SANITIZED, tmp_path)
    assert done.returncode == 0, done.stderr[:3000]
    for case, got in zip(SANITIZED, results, strict=True):
        assert_close(got, case.expect())


def test_a_missing_barrier_is_found(tmp_path):
    done, _ = run("tsan-planted", SANITIZED[:1], tmp_path)
    assert done.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "conv_backward_last" in done.stderr
