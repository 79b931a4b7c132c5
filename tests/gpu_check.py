"""Everything that needs a GPU in one command: ``make gpu-check``, that is ``python3 tests/gpu_check.py``.

Builds the native libraries in place for this GPU, runs every test marked `gpu`, compute-sanitizer, the benchmarks and a
short training run, and leaves logs, JSON and summary.md in one folder. It needs python3 with torch, pytest and numpy;
whatever else is absent (nvcc, triton, timm, yacs, a sanitizer that works, a peer) is skipped by name. A step that hangs
is cut and the rest goes on. The exit status is 0 unless a step failed or was cut. ``--device cpu`` goes through the
same steps without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "kernels" / "benchmarks"
DIGITS = "configs/classification/vmamba_digits.yaml"
# The folders of tests that may hold GPU tests, and the modules without which they cannot be collected.
TEST_FOLDERS: dict[str, tuple[str, ...]] = {"kernels": (), "models": ("timm",)}
TRAINER_NEEDS = ("timm", "torchvision", "PIL", "sklearn", "yacs", "yaml", "rich")
NOT_COMMANDS = {"operator_runs", "peers", "plots", "report", "shapes", "tables", "timing"}
PYTEST = [
    "-m",
    "pytest",
    "-c",
    "pyproject.toml",
    "-v",
    "--durations=10",
    "-p",
    "no:cacheprovider",
    "-o",
    "faulthandler_timeout=90",
]
# The options of pyproject.toml less --strict-config, which refuses the settings of a plugin that is not installed.
PYTEST += ["-o", "addopts=--import-mode=importlib --strict-markers -ra"]


@dataclass(frozen=True)
class Benchmark:
    """A command of kernels/benchmarks: its options on a GPU and, as a trial, on a CPU (None: not there)."""

    name: str
    command: str
    gpu: str
    cpu: str | None
    needs: tuple[str, ...] = ()
    limit: float = 90.0
    plot: bool = True


SHORT = "--seconds 0.1 --longest 3"
TRIAL = "--seconds 0.002 --longest 1 --sizes 32 --batch 1 --modes forward"
COMPILED = f"{SHORT} --budget 20 --networks vmamba_tiny --stages 1 3 --contenders"
KNOWN = (
    Benchmark(
        "ss2d",
        "ss2d",
        f"{SHORT} --budget 40 --sizes 224 512 1024 --contenders unfused unfused,mamba-ssm "
        "unfused,flash-linear-attention ours,triton",
        f"{TRIAL} --stages 4 --contenders unfused",
    ),
    Benchmark(
        "selective_scan",
        "selective_scan",
        f"{SHORT} --budget 40 --sizes 224 1024 --contenders ours,time-first mamba-ssm flash-linear-attention reference",
        f"{TRIAL} --stages 4 --contenders ours,time-first reference",
    ),
    Benchmark("ss2d_compiled", "ss2d", f"{COMPILED} unfused,associative_scan", None, ("triton",)),
    Benchmark("selective_scan_compiled", "selective_scan", f"{COMPILED} associative_scan", None, ("triton",)),
    Benchmark("layers", "layers", f"{SHORT} --budget 40 --batch 128 --contenders torch", f"{TRIAL} --contenders torch"),
    Benchmark(
        "growth",
        "growth",
        "--seconds 0.05 --longest 1 --budget 25 --contenders unfused ours,time-first ours,triton mamba-ssm",
        f"{TRIAL} --budget 1 --contenders unfused",
    ),
    Benchmark(
        "backbone",
        "backbone",
        "--batch 128 --amp bfloat16 --warmup 3 --steps 5 --turns 3",
        "--batch 1 --size 32 --turns 1 --modes inference --networks vmamba_tiny_s1l8",
        ("timm",),
        plot=False,
    ),
    Benchmark(
        "memory",
        "memory",
        "--batch 128 --amp bfloat16",
        "--batch 1 --size 32 --networks vmamba_tiny_s1l8",
        ("timm",),
        plot=False,
    ),
    Benchmark(
        "compiled",
        "compiled",
        "--batch 32 --rounds 5 --models vmamba_tiny_s1l8",
        None,
        ("timm", "triton"),
        plot=False,
    ),
)


@dataclass
class Outcome:
    """What became of a step: "passed", "skipped", "failed" or "cut" (stopped at its time limit)."""

    step: str
    status: str
    seconds: float = 0.0
    detail: str = ""


@dataclass
class Check:
    """One run of the whole: where it writes, until when, and what it found."""

    out: Path
    device: str
    jobs: int
    until: float
    facts: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def say(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        print(f"{outcome.status:8} {outcome.step} ({outcome.seconds:.0f} s) {outcome.detail}", flush=True)

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> Outcome:
        """Run a command of this Python into logs/NAME.log; it and all that it started are killed at the limit."""
        log = self.out / "logs" / f"{name}.log"
        limit = min(limit, self.until - time.monotonic())
        if limit < 1:
            return Outcome(name, "cut", 0.0, "no time was left to start it")
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
        settings |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment}
        started = time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = {0: "passed"}.get(process.wait(limit), "failed")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status = "cut"
        said = (self.log(name) or ["it said nothing"])[-1][:200]
        detail = "" if status == "passed" else f"after {limit:.0f} s: {said}" if status == "cut" else said
        return Outcome(name, status, time.monotonic() - started, detail)

    def log(self, name: str) -> list[str]:
        """What a command said, by lines without blanks around them."""
        path = self.out / "logs" / f"{name}.log"
        said = path.read_text(errors="replace") if path.is_file() else ""
        return [line.strip() for line in said.splitlines() if line.strip()]


def absent(modules: tuple[str, ...]) -> str:
    """ "timm, yacs are not installed", or "" if all are there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed" if missing else ""


FACTS = """
import json, platform, torch
facts = {"python": platform.python_version(), "torch": torch.__version__, "CUDA of torch": str(torch.version.cuda)}
if torch.cuda.is_available():
    facts |= {"GPU": torch.cuda.get_device_name(), "memory": f"{torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB"}
    facts["capability"] = "%d.%d" % torch.cuda.get_device_capability()
print(json.dumps(facts))
"""


def find_facts(check: Check) -> None:
    outcome = check.run("facts", ["-c", FACTS], 120)
    if outcome.status != "passed":
        raise SystemExit(f"error: {sys.executable} cannot import torch: {outcome.detail}")
    check.facts = json.loads(next(line for line in check.log("facts") if line.startswith("{")))
    if check.device == "cuda" and "GPU" not in check.facts:
        raise SystemExit(
            f"error: gpu-check needs a CUDA device, and torch {check.facts['torch']} of {sys.executable} sees none; "
            "--device cpu tries the steps without one"
        )
    check.facts["cores"] = str(os.cpu_count())
    for name in ("triton", "pytest", "timm", "numpy", "matplotlib", "mamba_ssm", "fla"):
        check.facts[name] = "not installed" if absent((name,)) else "installed"
    print("; ".join(f"{name} {value}" for name, value in check.facts.items()), flush=True)


def build(check: Check) -> Iterator[Outcome]:
    """The native libraries beside their Python files; the CUDA one for this GPU alone."""
    why = absent(("setuptools",))
    if why:
        yield Outcome("build", "skipped", detail=why)
        return
    asked = check.run("find_nvcc", ["-c", "import setup; setup.cuda_compiler()"], 60)
    nvcc = asked.status == "passed"
    settings = {"VMAMBA_BUILD": "cpu" if check.device == "cpu" else "cuda" if nvcc else "auto"}
    if "capability" in check.facts:
        settings["TORCH_CUDA_ARCH_LIST"] = check.facts["capability"]
    yield check.run("build", ["-c", "import setup; setup.build_native()"], 240, **settings)
    if check.device == "cuda" and not nvcc:
        yield Outcome("build the CUDA library", "skipped", detail=asked.detail.removeprefix("setup.CannotBuild: "))


def doctor(check: Check) -> Iterator[Outcome]:
    """Versions, and every backend against the reference."""
    yield check.run("doctor", ["-m", "vmamba.doctor"], 120)


def collected(check: Check, folder: str, marks: str) -> tuple[list[str], Outcome]:
    """The node ids of a folder's tests with some marks."""
    name = f"collect_{folder}_{marks.replace(' ', '_')}"
    outcome = check.run(name, [*PYTEST, "-q", "-q", "--collect-only", "-m", marks, f"tests/{folder}"], 120)
    if outcome.status == "failed" and "no tests" in outcome.detail:
        outcome.status = "passed"
    return [line for line in check.log(name) if line.startswith("tests/") and ".py::" in line], outcome


def grouped(tests: list[str], slow: bool) -> dict[str, list[str]]:
    """The tests of each process, by its name: a file's, or of slow ones a single test."""
    groups: dict[str, list[str]] = {}
    for test in tests:
        what = test if slow else test.split("::")[0]
        name = re.sub(r"\W+", "_", what.removeprefix("tests/").replace(".py", "")).strip("_")
        groups.setdefault(name, []).append(test)
    return groups


def pytest_outcome(check: Check, name: str, selected: list[str], marks: str, limit: float) -> Outcome:
    """Run some tests, and count them from pytest's own record."""
    record = check.out / "logs" / f"{name}.xml"
    record.unlink(missing_ok=True)  # an earlier run's, if this one is cut
    threads = str(max(1, (os.cpu_count() or 1) // check.jobs))
    command = [*PYTEST, f"--junitxml={record}", "-m", marks, *selected]
    outcome = check.run(name, command, limit, OMP_NUM_THREADS=threads)
    if not record.is_file():
        return outcome
    passed, failed, reasons = read_record(record)
    skipped = sum(reasons.values())
    outcome.detail = f"{passed} passed, {len(failed)} failed, {skipped} skipped"
    outcome.detail += "".join(f"; FAILED {test}" for test in failed[:10])
    outcome.detail += "".join(f"; {count} skipped: {why}" for why, count in reasons.most_common(8))
    if outcome.status == "passed" and not passed:
        outcome.status = "skipped"
    return outcome


def read_record(record: Path) -> tuple[int, list[str], Counter[str]]:
    """(passed, names of the failed, reasons of the skipped) of a JUnit file."""
    passed, failed, reasons = 0, [], Counter[str]()
    for case in ElementTree.parse(record).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname', '')}::{case.get('name', '')}")
        elif skipped is not None:
            reasons[(skipped.get("message") or "no reason given")[:160]] += 1
        else:
            passed += 1
    return passed, failed, reasons


def tests(check: Check) -> Iterator[Outcome]:
    """Every GPU test that is not slow: a process a file, several at once."""
    yield from marked_tests(check, "gpu and not slow", check.jobs, 180)


def slow_tests(check: Check) -> Iterator[Outcome]:
    """A process a test: compute-sanitizer's several at once, those of tensors beyond 2^31 elements one by one."""
    yield from marked_tests(check, "gpu and slow", min(check.jobs, 4), 180)


def marked_tests(check: Check, marks: str, jobs: int, limit: float) -> Iterator[Outcome]:
    """The tests of TEST_FOLDERS with some marks, in `jobs` processes at once."""
    why = absent(("pytest",))
    if why:
        yield Outcome(f"tests ({marks})", "skipped", detail=why)
        return
    selected: list[str] = []
    for folder, needs in TEST_FOLDERS.items():
        why = absent(needs)
        if why:
            yield Outcome(f"tests/{folder} ({marks})", "skipped", detail=why)
            continue
        found, outcome = collected(check, folder, marks)
        selected += found
        if outcome.status != "passed":
            yield outcome

    groups = grouped(selected, slow="not slow" not in marks)

    def one(name: str) -> Outcome:
        return pytest_outcome(check, name, groups[name], marks, limit)

    # A slow test that is no sanitizer's fills the memory of the GPU: never two of them at once.
    large = [name for name in groups if "not slow" not in marks and "sanitizer" not in name]
    with ThreadPoolExecutor(jobs) as pool, ThreadPoolExecutor(1) as alone:
        found = [(alone if name in large else pool).submit(one, name) for name in groups]
        for each in found:
            yield each.result()


def benchmarks(check: Check) -> Iterator[Outcome]:
    """Every command of kernels/benchmarks in turn: those that this file knows, then all others found there."""
    others = {path.stem for path in BENCHMARKS.glob("*.py")} - {known.command for known in KNOWN} - NOT_COMMANDS
    for each in (*KNOWN, *(Benchmark(name, name, "", None, limit=60, plot=False) for name in sorted(others))):
        options = each.gpu if check.device == "cuda" else each.cpu
        why = absent(each.needs) or ("needs a CUDA device" if options is None else "")
        if options is None or why:
            yield Outcome(f"benchmark {each.name}", "skipped", detail=why)
        else:
            yield benchmark(check, each, options)


def benchmark(check: Check, each: Benchmark, options: str) -> Outcome:
    name = f"benchmark_{each.name}"
    kept = ["--json", str(check.out / f"{each.name}.json")]
    kept += ["--plot", str(check.out / f"{each.name}.png")] if each.plot else []
    for path in kept[1::2]:
        Path(path).unlink(missing_ok=True)
    command = [str(BENCHMARKS / f"{each.command}.py"), "--device", check.device, *options.split(), *kept]
    outcome = check.run(name, command, each.limit)
    skips = Counter(line.split("skipped:")[-1].strip()[:100] for line in check.log(name) if "skipped:" in line)
    outcome.detail += "".join(f"; {count} skipped: {why}" for why, count in skips.most_common(6))
    return outcome


def training(check: Check) -> Iterator[Outcome]:
    """The trainer on the bundled digits, to its end and its evaluation."""
    why = absent(TRAINER_NEEDS)
    if why:
        yield Outcome("training", "skipped", detail=f"{why}; the tests of tests/models train without the trainer")
        return
    shutil.rmtree(check.out / "training", ignore_errors=True)  # an earlier run would be resumed at its end
    command = ["-m", "classification", "--cfg", DIGITS, "--output", str(check.out / "training")]
    trial = "TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 MODEL.VSSM.DEPTHS [1,1] MODEL.VSSM.EMBED_DIM 8 DATA.NUM_WORKERS 0"
    outcome = check.run("training", [*command, *(["--opts", *trial.split()] if check.device == "cpu" else [])], 120)
    accuracy = [line for line in check.log("training") if "Acc@1" in line]
    outcome.detail = outcome.detail or (accuracy[-1][-120:] if accuracy else "")
    yield outcome


STEPS: dict[str, Callable[[Check], Iterator[Outcome]]] = {
    "build": build,
    "doctor": doctor,
    "tests": tests,
    "slow-tests": slow_tests,
    "benchmarks": benchmarks,
    "training": training,
}


def summary(check: Check, seconds: float) -> str:
    """The whole as markdown."""
    counts = Counter(outcome.status for outcome in check.outcomes)
    lines = ["# gpu-check", "", "; ".join(f"{name} {value}" for name, value in check.facts.items()), ""]
    lines += [f"{seconds:.0f} s: " + ", ".join(f"{counts[s]} {s}" for s in ("passed", "skipped", "failed", "cut")), ""]
    lines += ["| step | status | seconds | detail |", "|---|---|---|---|"]
    for outcome in check.outcomes:
        detail = outcome.detail.strip("; ").replace("|", "/")
        lines.append(f"| {outcome.step} | {outcome.status} | {outcome.seconds:.0f} | {detail} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "gpu-check", help="folder (output/gpu-check)")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--minutes", type=float, default=9.5, help="after which what still runs is cut (9.5)")
    jobs = max(1, min(8, (os.cpu_count() or 1) // 2))
    parser.add_argument("--jobs", type=int, default=jobs, help="test files at once")
    options = parser.parse_args()
    started = time.monotonic()
    out = options.out.resolve()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    check = Check(out, options.device, options.jobs, started + 60 * options.minutes)
    find_facts(check)
    for name in STEPS:
        if name not in options.steps:
            continue
        for outcome in STEPS[name](check):
            check.say(outcome)
    ran = [o for o in check.outcomes if o.step.startswith("kernels_test_") and o.status == "passed"]
    if check.device == "cuda" and "tests" in options.steps and not ran:
        check.say(Outcome("tests", "failed", detail="not one GPU test of tests/kernels ran; their reasons stand above"))
    text = summary(check, time.monotonic() - started)
    (out / "summary.md").write_text(text)
    record = {"facts": check.facts, "outcomes": [asdict(outcome) for outcome in check.outcomes]}
    (out / "summary.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{text}\nall of it: {out}")
    return 1 if any(outcome.status in ("failed", "cut") for outcome in check.outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
