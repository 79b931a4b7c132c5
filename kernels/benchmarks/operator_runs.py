"""The run that all benchmarks of an operator share: a plan of cases, the contenders by turns, a row for each."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from plots import bars
from report import Report
from shapes import Scan, scans
from tables import by_network
from timing import Call, Clock, Sample, TooSlow, copy_bandwidth, copy_call
from torch import Tensor

MODES = ("forward", "backward", "training")
# The largest relative error, in norm, of a contender's output against ours: more is another computation.
AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Case:
    """One table: an operator at a shape, in one type, forward, backward or both ("training")."""

    operator: str
    network: str
    size: int
    scan: Scan
    batch: int
    dtype: str
    mode: str

    def __str__(self) -> str:
        return (
            f"{self.operator} {self.mode}, {self.network} at {self.size}, stage {self.scan.stage}: batch {self.batch}, "
            f"{self.scan}, {self.dtype}"
        )

    @property
    def elements(self) -> int:
        return self.batch * self.scan.directions * self.scan.channels * self.scan.length


@dataclass(frozen=True)
class Contender:
    """One way to compute a case: functions to try in turn, the tensors that suit them, the memory that they need.

    `slow_backward`: its gradient costs the square of the length.
    """

    name: str
    functions: tuple[Callable[[], Callable[..., Tensor]], ...]
    tensors: list[Tensor]
    room: float = 0.0
    slow_backward: bool = False


@dataclass
class Benchmark:
    """An operator's own part: its contenders at a case, ours first, the bytes that it must move, the scans it suits."""

    operator: str
    contenders: Callable[[Case, torch.device], list[Contender]]
    necessary_bytes: Callable[[Case], int]
    before: dict[tuple[str, str], tuple[float, Case]] = field(default_factory=dict)
    suits: Callable[[Scan], bool] = lambda scan: True


def arguments(description: str | None, networks: list[str], known: list[str]) -> argparse.ArgumentParser:
    """The options of every benchmark of an operator."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--networks", nargs="+", default=networks, choices=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--sizes", type=int, nargs="+", default=[224], help="pixels a side of the images")
    parser.add_argument("--batch", type=int, nargs="+", help="at 224, fewer above (default: 1 8; on a GPU 128)")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3, 4], choices=(1, 2, 3, 4))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"), help="of the activations")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="(default: forward training; on a GPU backward too)")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="these only, and ours")
    parser.add_argument("--threads", type=int, help="of PyTorch's pool (default: its own choice)")
    parser.add_argument("--seconds", type=float, default=0.5, help="for the turns of one figure")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds of one call above which it is skipped")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which no further case begins")
    parser.add_argument("--json", type=Path, help="keep every figure in this file")
    parser.add_argument("--plot", type=Path, help="draw the figures (needs matplotlib)")
    return parser


def settle(options: argparse.Namespace) -> None:
    """Fill in what depends on the device."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda: torch sees no CUDA device; use --device cpu")
    gpu = options.device == "cuda"
    options.batch = options.batch or ([128] if gpu else [1, 8])
    options.dtypes = options.dtypes or (["bfloat16"] if gpu else ["float32"])
    options.modes = options.modes or (["forward", "backward"] if gpu else ["forward", "training"])
    if options.threads:
        torch.set_num_threads(options.threads)


def batch_at(batch: int, size: int) -> int:
    """As many images as keep the number of pixels, at least one."""
    return max(1, batch * 224**2 // max(size, 224) ** 2)


def run(name: str, cases: list[tuple[Benchmark, Case]], options: argparse.Namespace) -> Report:
    """The report over the cases, in their order, as far as the budget goes; the plan is printed first."""
    started = time.monotonic()
    clock = Clock(options.device, options.seconds, options.longest)
    report = Report(name, options.device, clock.method())
    print(
        f"plan: {len(cases)} tables, about {options.seconds:g} s a contender and its compilation, in "
        f"{options.budget:.0f} s at most; what is left then is skipped by name"
    )
    speed = copy_bandwidth(clock)
    report.setting["copy bandwidth"] = f"{speed / 1e9:.1f} GB/s"
    print(f"copy bandwidth, one large array, read + written: {report.setting['copy bandwidth']}", flush=True)
    for benchmark, case in cases:
        if time.monotonic() - started > options.budget:
            _skip(report, case, "every contender", f"the budget of {options.budget:.0f} s is used up")
            continue
        print(f"{case}")
        try:
            _run_case(benchmark, case, clock, options.contenders, report)
        except (torch.OutOfMemoryError, TooSlow) as why:
            _skip(report, case, "ours", str(why).splitlines()[0])
        except RuntimeError as error:
            report.add(**_row(case, "ours"), ms=None, failed=str(error))
            print(f"    FAILED: {error}", flush=True)
        if clock.cuda:
            torch.cuda.empty_cache()
    report.close(options.json)
    return report


def main(
    benchmarks: Benchmark | list[Benchmark],
    description: str | None,
    networks: list[str],
    known: list[str],
    shapes: Callable[[list[str], int], dict[Scan, str]] = scans,
    name: str = "",
    **defaults: object,
) -> None:
    """The command of one operator: the shapes of the networks asked for, tables by network, and the plot.

    `shapes` makes the cases' shapes of networks and an image size; `name` is the report's, else the first operator's;
    `defaults` are other defaults of the options.
    """
    parser = arguments(description, networks, known)
    parser.set_defaults(**defaults)
    options = parser.parse_args()
    settle(options)
    benchmarks = [benchmarks] if isinstance(benchmarks, Benchmark) else benchmarks
    cases = [
        (benchmark, Case(benchmark.operator, network, size, scan, batch_at(batch, size), dtype, mode))
        for size in options.sizes
        for batch in options.batch
        for dtype in options.dtypes
        for mode in options.modes
        for scan, network in shapes(options.networks, size).items()
        if scan.stage in options.stages
        for benchmark in benchmarks
        if benchmark.suits(scan)
    ]
    report = run(name or benchmarks[0].operator.partition(",")[0], cases, options)
    print(by_network(report.rows))
    if options.plot:
        bars(report.rows, options.plot)
    exit_if_failed(report)


def exit_if_failed(report: Report) -> None:
    """End with an error if ours failed at a case."""
    if any("failed" in row for row in report.rows):
        raise SystemExit("error: ours failed where the rows say FAILED")


def _row(case: Case, contender: str) -> dict[str, object]:
    flat = {k: v for k, v in asdict(case).items() if k != "scan"} | asdict(case.scan) | {"length": case.scan.length}
    return {**flat, "contender": contender}


def _skip(report: Report, case: Case, contender: str, reason: str) -> None:
    report.add(**_row(case, contender), ms=None, skipped=reason)
    where = f"{case}: " if contender == "every contender" else "    "
    print(f"{where}{contender:24} skipped: {reason}", flush=True)


def step(function: Callable[..., Tensor], tensors: list[Tensor], mode: str) -> Call:
    """A call of a function without gradients, of its backward alone on a kept graph, or of both with every gradient."""
    if mode == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*tensors)

        return forward
    leaves = [x.detach().requires_grad_() for x in tensors]
    if mode == "training":

        def training() -> object:
            out = function(*leaves)
            return torch.autograd.grad(out, leaves, torch.ones_like(out))

        return training
    out = function(*leaves)
    dout = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def _free_bytes(clock: Clock) -> float:
    if clock.cuda:
        return torch.cuda.mem_get_info(clock.device)[0]
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def _expected(benchmark: Benchmark, case: Case, contender: Contender) -> float:
    """Seconds of one call, from the case before: in proportion to the elements, for some also to the length."""
    seconds, before = benchmark.before.get((contender.name, case.mode), (0.0, case))
    growth = case.elements / before.elements
    if contender.slow_backward and case.mode != "forward":
        growth *= case.scan.length / before.scan.length
    return seconds * growth


def _prepare(contender: Contender, case: Case, clock: Clock, wanted: Tensor | None) -> tuple[Call, float]:
    """The call of the first of its functions that runs, warm, and its seconds; raises why none does."""
    if contender.room > _free_bytes(clock):
        raise TooSlow(f"needs {contender.room / 2**30:.0f} GiB")
    errors = []
    for make in contender.functions:
        try:
            call = step(make(), contender.tensors, case.mode)
            took = clock.warm_up(call)
            if case.mode == "forward" and wanted is not None:
                found = call()
                error = float((found.float() - wanted).norm() / wanted.norm())
                if not error <= AGREEMENT[getattr(torch, case.dtype)]:
                    raise RuntimeError(f"its output is another: relative error {error:.1e}")
            return call, took
        except (TooSlow, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a peer or its compiler raises: it is told, and the others go on
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            errors.append(f"{type(error).__name__}: {lines[0][:120]}")
    raise RuntimeError("; ".join(errors))


def _run_case(benchmark: Benchmark, case: Case, clock: Clock, names: list[str] | None, report: Report) -> None:
    contenders = benchmark.contenders(case, clock.device)
    ours = contenders[0]
    chosen = [c for c in contenders if c is ours or names is None or c.name in names]
    wanted = None
    if case.mode == "forward":
        wanted = step(ours.functions[0](), ours.tensors, "forward")().float()
    calls: dict[str, Call] = {}
    each: dict[str, float] = {}
    for contender in chosen:
        guess = _expected(benchmark, case, contender)
        try:
            if guess > clock.longest:
                raise TooSlow(f"a call would take about {guess:.0f} s, after the table before")
            call, each[contender.name] = _prepare(contender, case, clock, None if contender is ours else wanted)
        except (RuntimeError, TooSlow) as why:
            if contender is ours:
                raise
            _skip(report, case, contender.name, str(why))
            if guess:
                benchmark.before[contender.name, case.mode] = (guess, case)
            continue
        calls[contender.name] = call
        benchmark.before[contender.name, case.mode] = (each[contender.name], case)
    nbytes = benchmark.necessary_bytes(case)
    calls["copy"] = copy_call(clock.device, nbytes)
    each["copy"] = clock.warm_up(calls["copy"])
    samples = clock.by_turns(calls, each)
    _tell(report, case, samples, nbytes, ours.name)


def _tell(report: Report, case: Case, samples: dict[str, Sample], nbytes: int, first: str) -> None:
    """Print and keep the rows of a case: ours against the copy of as many bytes, the others against ours."""
    copy = samples.pop("copy")
    print(f"    necessary {nbytes / 1e6:.2f} MB; a copy of as many takes {copy.median * 1e3:.4f} ms")
    ours = samples[first].median
    for name, sample in samples.items():
        row = _row(case, name) | {
            "ms": sample.median * 1e3,
            "fastest_ms": sample.fastest * 1e3,
            "slowest_ms": sample.slowest * 1e3,
            "calls": sample.calls,
            "host_ms": None if sample.host is None else sample.host * 1e3,
            "necessary_bytes": nbytes,
            "bytes_per_second": nbytes / sample.median,
            "of_copy": copy.median / sample.median,
            "times_ours": sample.median / ours,
            "ns_per_element": sample.median * 1e9 / case.elements,
        }
        report.add(**row)
        host = "" if sample.host is None else f", host {sample.host * 1e3:.3f} ms"
        print(
            f"    {name:24}{row['ms']:11.4f} ms ({row['fastest_ms']:.4f} to {row['slowest_ms']:.4f}{host})"
            f"{nbytes / sample.median / 1e9:8.1f} GB/s{row['of_copy']:7.0%} of the copy{row['times_ours']:8.2f} x ours",
            flush=True,
        )
