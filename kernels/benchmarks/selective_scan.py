"""The selective scan beside other ways to compute it, in one run: `python kernels/benchmarks/selective_scan.py`.

At VMamba-T's four stage shapes, with K = 4 groups, for d_state 1 (D = 96, 192, 384, 768) and 16 (D = 192 ... 1536).
A case whose first call or whose repeats would take over a minute is skipped, by name.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from selective_scan_peers import compiled_associative_scan, pscan, sequential_loop
from torch import Tensor

from vmamba_kernels import native, selective_scan

GROUPS = 4
LENGTHS = (3136, 784, 196, 49)
WIDTHS = {1: (96, 192, 384, 768), 16: (192, 384, 768, 1536)}
TOO_LONG = 60.0
METHOD = """Method: float32 tensors; u, delta, B, C random normal, delta_bias the inverse softplus of a step size drawn
log-uniformly from [0.001, 0.1], A = -(1 ... N), D = 1; softplus, bias and skip inside for everybody. Ours, the
reference, pscan and associative_scan get u and delta stored channel-last [B, L, K*D] and B, C as [B, L, K, N], the
loop gets all channel-first, each as suits it. {warm} warm-up calls, then the median of {least} to {most} repeats within
about {seconds:g} s, the wall clock around each{device}. fwd: under no_grad. fwd+bwd: forward and the gradients of all
seven arguments. associative_scan is compiled first (not timed). A copy moves as many bytes (read + written) as our
forward must: u, delta, B, C and y once; its repeats alternate with those of our forward."""


@dataclass(frozen=True)
class Stage:
    """One shape."""

    number: int
    d_state: int
    batch: int

    @property
    def length(self) -> int:
        return LENGTHS[self.number - 1]

    @property
    def channels(self) -> int:
        return GROUPS * WIDTHS[self.d_state][self.number - 1]

    def tensors(self, device: str) -> list[Tensor]:
        make = torch.Generator().manual_seed(0)
        step = torch.exp(torch.rand(self.channels, generator=make) * math.log(100.0) + math.log(0.001))

        def normal(*shape: int) -> Tensor:
            return torch.randn(self.batch, self.length, *shape, generator=make).movedim(1, -1)

        u, delta = normal(self.channels), normal(self.channels)
        B, C = normal(GROUPS, self.d_state), normal(GROUPS, self.d_state)
        A = -torch.arange(1.0, self.d_state + 1).repeat(self.channels, 1)
        bias = step + torch.log(-torch.expm1(-step))
        return [x.to(device) for x in (u, delta, A, B, C, torch.ones(self.channels), bias)]

    def bytes_moved(self) -> int:
        return 4 * self.batch * self.length * (3 * self.channels + 2 * GROUPS * self.d_state)


@dataclass
class Result:
    """A figure of one method at one shape: median milliseconds, or why there is none."""

    method: str
    task: str
    stage: int
    d_state: int
    batch: int
    milliseconds: float | None = None
    repeats: int = 0
    skipped: str = ""


class Clock:
    """Times calls, and stops when their repeats have taken their share."""

    def __init__(self, device: str, seconds: float, least: int, most: int, warm: int) -> None:
        self.device, self.seconds, self.least, self.most, self.warm = device, seconds, least, most, warm

    def once(self, call: Callable[[], object]) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def medians(self, *calls: Callable[[], object]) -> tuple[list[float], int]:
        """Median seconds of each call, their repeats in turn, and how many there were; infinite if over a minute."""
        for _ in range(self.warm):
            first = sum(self.once(call) for call in calls)
            if first * (self.least + self.warm) > TOO_LONG:
                return [math.inf] * len(calls), 0
        times: list[list[float]] = [[] for _ in calls]
        until = time.perf_counter() + self.seconds * len(calls)
        while len(times[0]) < self.least or (time.perf_counter() < until and len(times[0]) < self.most):
            for kept, call in zip(times, calls):
                kept.append(self.once(call))
        return [statistics.median(kept) for kept in times], len(times[0])


def task_call(function: Callable[..., Tensor], tensors: list[Tensor], task: str) -> Callable[[], object]:
    if task == "fwd":

        def forward() -> None:
            with torch.no_grad():
                function(*tensors)

        return forward
    leaves = [x.detach().requires_grad_() for x in tensors]
    dy = torch.randn_like(tensors[0])

    def both() -> None:
        torch.autograd.grad(function(*leaves), leaves, dy)

    return both


def methods(device: str) -> dict[str, Callable[[], Callable[..., Tensor]]]:
    """Name -> what makes the function."""
    return {
        "ours": lambda: selective_scan,
        "reference": lambda: lambda *x: selective_scan(*x, backend="reference"),
        "loop": lambda: sequential_loop,
        "pscan": lambda: pscan,
        "associative": compiled_associative_scan,
    }


def expected_seconds(name: str, task: str, stage: Stage, before: Result | None, smaller: Stage | None) -> float:
    """A guess from the next smaller stage: in proportion to the elements; the loop's backward also to the length."""
    if before is None or smaller is None:
        return 0.0
    if before.milliseconds is None:
        return math.inf
    growth = stage.channels * stage.length / (smaller.channels * smaller.length)
    if name == "loop" and task == "fwd+bwd":
        growth *= stage.length / smaller.length
    return before.milliseconds / 1e3 * growth


def run_shapes(d_state: int, batch: int, names: list[str], tasks: list[str], clock: Clock) -> list[Result]:
    """All methods and tasks at the four stages, small ones first; prints a line for each stage."""
    results: list[Result] = []
    known: dict[tuple[str, str], Result] = {}
    smaller: Stage | None = None
    for number in (4, 3, 2, 1):
        stage = Stage(number, d_state, batch)
        tensors = stage.tensors(clock.device)
        channel_first = [x.contiguous() for x in tensors]
        print(f"d_state {d_state}, batch {batch}, stage {number}: K*D {stage.channels}, L {stage.length}", flush=True)
        for task in tasks:
            for name in names:
                result = Result(name, task, number, d_state, batch)
                guess = expected_seconds(name, task, stage, known.get((name, task)), smaller)
                if guess * (clock.least + clock.warm) > TOO_LONG:
                    result.skipped = "over a minute"
                else:
                    measure(result, name, task, channel_first if name == "loop" else tensors, stage, clock, results)
                known[name, task] = result
                results.append(result)
                shown = f"{result.milliseconds:10.3f} ms" if result.milliseconds else f"   skipped: {result.skipped}"
                print(f"    {task:8s} {name:12s} {shown}", flush=True)
        smaller = stage
    return results


def measure(
    result: Result, name: str, task: str, tensors: list[Tensor], stage: Stage, clock: Clock, results: list[Result]
) -> None:
    try:
        call = task_call(methods(clock.device)[name](), tensors, task)
        started = time.perf_counter()
        call()
        if time.perf_counter() - started > TOO_LONG:
            result.skipped = "first call over a minute"
            return
        if name == "ours" and task == "fwd":
            half = torch.randn(stage.bytes_moved() // 8, device=clock.device)
            target = torch.empty_like(half)
            (seconds, copying), repeats = clock.medians(call, lambda: target.copy_(half))
            copied = Result("copy", task, stage.number, stage.d_state, stage.batch, copying * 1e3, repeats)
            results.append(copied)
        else:
            (seconds,), repeats = clock.medians(call)
    except (RuntimeError, MemoryError, ImportError) as error:
        result.skipped = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        return
    if math.isinf(seconds):
        result.skipped = "over a minute"
    else:
        result.milliseconds, result.repeats = seconds * 1e3, repeats


def table(results: list[Result], d_state: int, batch: int, task: str, names: list[str]) -> str:
    """Milliseconds by stage, their sum, and the ratio of the sums to ours over the stages that both have."""
    shown = [r for r in results if (r.d_state, r.batch, r.task) == (d_state, batch, task)]
    found = {(r.method, r.stage): r.milliseconds for r in shown}
    lines = [f"\nd_state {d_state}, batch {batch}, {task}: milliseconds, and times as long as ours"]
    lines.append(f"{'':12s}" + "".join(f"{f'stage {n}':>20s}" for n in (1, 2, 3, 4)) + f"{'sum':>22s}")
    for name in names:
        cells, total, ours_total, missing = [], 0.0, 0.0, False
        for number in (1, 2, 3, 4):
            value, ours = found.get((name, number)), found.get(("ours", number))
            if value is None or ours is None:
                cells.append(f"{'skipped':>20s}")
                missing = True
                continue
            total, ours_total = total + value, ours_total + ours
            cells.append(f"{value:11.3f} {value / ours:7.1f}x")
        ratio = f"{total:12.3f} {total / ours_total:7.1f}x" if ours_total else f"{'-':>20s}"
        lines.append(f"{name:12s}" + "".join(cells) + ratio + (" *" if missing else ""))
    if any(line.endswith("*") for line in lines):
        lines.append("* over the stages that were not skipped")
    copies = {n: (found.get(("copy", n)), found.get(("ours", n))) for n in (1, 2, 3, 4)}
    shares = [
        f"stage {n}: {100 * copy / ours:.0f} % ({Stage(n, d_state, batch).bytes_moved() / copy / 1e6:.1f} GB/s)"
        for n, (copy, ours) in copies.items()
        if copy and ours
    ]
    if shares:
        lines.append("ours as a share of the bandwidth of a copy of as many bytes: " + ", ".join(shares))
    return "\n".join(lines)


def setting(device: str) -> dict[str, str]:
    """What the figures depend on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = f"{names[0]} x {len(names)}" if names else cpu
    row = next(r for r in native.explain() if r[:2] == ("selective_scan", device))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "mambapy") if _installed(name)}
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": str(torch.get_num_threads()),
        "backend": row.backend + (f" ({native.cpu_isa()})" if row.backend == "cpu" else ""),
        "load": Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").is_file() else "unknown",
        **versions,
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--d-state", type=int, nargs="+", choices=sorted(WIDTHS), default=[1, 16])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--methods", nargs="+", choices=list(methods("cpu")), default=list(methods("cpu")))
    parser.add_argument("--tasks", nargs="+", choices=["fwd", "fwd+bwd"], default=["fwd", "fwd+bwd"])
    parser.add_argument("--threads", type=int, help="threads of PyTorch's pool (its own choice if not given)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for the repeats of one figure")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    names = ["ours", *(name for name in options.methods if name != "ours")]
    clock = Clock(options.device, options.seconds, least=3, most=200, warm=2)
    where = setting(options.device)
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    device = ", synchronised with the GPU" if options.device == "cuda" else ""
    print(METHOD.format(warm=clock.warm, least=clock.least, most=clock.most, seconds=clock.seconds, device=device))
    results: list[Result] = []
    for d_state in options.d_state:
        for batch in options.batch:
            results += run_shapes(d_state, batch, names, options.tasks, clock)
    for d_state in options.d_state:
        for batch in options.batch:
            for task in options.tasks:
                print(table(results, d_state, batch, task, names))
    if options.json:
        record = {"setting": where, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
