"""`make gpu-check` without a GPU: torch, pytest and numpy are enough, what hangs is cut, failures are counted."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What the path of the GPU tests must not need; timm brings the second lot along, and tests/models need timm.
BLOCKED = [
    "yacs",
    "mmengine",
    "mmcv",
    "mmdet",
    "mmseg",
    "fvcore",
    "pytest_timeout",
    "xdist",
    "rich",
    "mambapy",
    "sklearn",
]
BLOCKED += ["matplotlib", "tensorboard", "einops", "skimage", "scipy"]
WITH_TIMM = ["timm", "torchvision", "PIL", "safetensors", "huggingface_hub", "yaml"]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tests" / "gpu_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gpu_check = load()
MODULES = [path.stem for path in gpu_check.BENCHMARKS.glob("*.py")]
# No nvcc in the usual place, and the setuptools of before 70.1.
OLD_SETUPTOOLS = """
import shutil, sys
sys.modules["setuptools.command.bdist_wheel"] = None
found = shutil.which
shutil.which = lambda name, *given, **named: None if "nvcc" in str(name) else found(name, *given, **named)
"""


@pytest.fixture
def check(tmp_path: Path) -> Iterator[object]:
    (tmp_path / "logs").mkdir()
    return gpu_check.Check(tmp_path, "cpu", 1, time.monotonic() + 100)


@pytest.mark.parametrize("folder", list(gpu_check.TEST_FOLDERS))
def test_gpu_tests_are_collected_with_torch_pytest_and_numpy_alone(folder: str, tmp_path: Path) -> None:
    blocked = BLOCKED if "timm" in gpu_check.TEST_FOLDERS[folder] else BLOCKED + WITH_TIMM
    (tmp_path / "blocking.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n")
    paths = [str(tmp_path), str(ROOT), str(ROOT / "kernels")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, *gpu_check.PYTEST, "-p", "blocking", "-m", "gpu", "--collect-only", "-q", "-q", "-q"]
    answer = subprocess.run(
        [*command, f"tests/{folder}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-1000:]
    counts = re.findall(r"^tests/\S+: (\d+)$", answer.stdout, re.MULTILINE)
    assert sum(map(int, counts)) > 20, answer.stdout


def test_blocking_is_seen(tmp_path: Path) -> None:
    (tmp_path / "blocking.py").write_text("import sys\nsys.modules.update(dict.fromkeys(['numpy']))\n")
    (tmp_path / "test_it.py").write_text("import numpy\n\ndef test():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "blocking", "-p", "no:cacheprovider", "-c", os.devnull]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    answer = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 2 and "import of numpy halted" in answer.stdout


def test_no_gpu_test_lies_where_it_would_not_run() -> None:
    known = {ROOT / "tests" / folder for folder in gpu_check.TEST_FOLDERS}
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__) and re.search(r"mark\.gpu\b|needs_gpu", path.read_text()):
            assert path.parent in known, f"{path}: gpu_check.TEST_FOLDERS does not name its folder"


def test_every_known_benchmark_is_there() -> None:
    for known in gpu_check.KNOWN:
        assert (gpu_check.BENCHMARKS / f"{known.command}.py").is_file()
    for name in gpu_check.NOT_COMMANDS:
        assert "__main__" not in (gpu_check.BENCHMARKS / f"{name}.py").read_text()


COMMANDS = sorted({path.stem for path in gpu_check.BENCHMARKS.glob("*.py")} - gpu_check.NOT_COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_benchmark_takes_what_it_is_given(command: str, monkeypatch, tmp_path: Path) -> None:
    """Its own parser reads the options of every run, and is left before anything is measured."""
    options = [known.gpu.split() for known in gpu_check.KNOWN if known.command == command] or [[]]
    if command in {known.command for known in gpu_check.KNOWN if "timm" in known.needs}:
        pytest.importorskip("timm")
    parse = argparse.ArgumentParser.parse_args
    parsed: list[argparse.Namespace] = []

    def parse_and_leave(parser: argparse.ArgumentParser, given: object = None, namespace: object = None) -> None:
        parsed.append(parse(parser, given, namespace))
        raise SystemExit("parsed")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
    monkeypatch.syspath_prepend(str(gpu_check.BENCHMARKS))
    hidden = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    script = str(gpu_check.BENCHMARKS / f"{command}.py")
    try:
        for given in options:
            monkeypatch.setattr(
                sys, "argv", [script, "--device", "cuda", *given, "--json", str(tmp_path / "figures.json")]
            )
            with pytest.raises(SystemExit, match="^parsed$"):
                runpy.run_path(script, run_name="__main__")
            assert parsed[-1].device == "cuda" and parsed[-1].json == tmp_path / "figures.json"
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def test_each_test_runs_once_and_large_ones_alone(check, monkeypatch) -> None:
    small = [f"tests/kernels/test_cuda_sanitizers.py::test_nothing[scans-{tool}]" for tool in "abc"]
    large = [f"tests/kernels/test_{name}.py::test_beyond" for name in "xyz"]
    monkeypatch.setattr(gpu_check, "TEST_FOLDERS", {"kernels": ()})
    found = [large[0], *small, *large[1:]]
    monkeypatch.setattr(gpu_check, "collected", lambda *_: (found, gpu_check.Outcome("collect", "passed")))
    running, most, ran = set(), [], []

    def outcome(check: object, name: str, selected: list[str], marks: str, limit: float) -> object:
        running.add(name)
        time.sleep(0.05)
        most.append(sum("sanitizer" not in other for other in running))
        running.remove(name)
        ran.extend(selected)
        return gpu_check.Outcome(name, "passed")

    monkeypatch.setattr(gpu_check, "pytest_outcome", outcome)
    names = [each.step for each in gpu_check.marked_tests(check, "gpu and slow", 3, 10)]
    assert sorted(ran) == sorted(found) and max(most) == 1 and len(set(names)) == len(found)
    assert gpu_check.grouped([*found, large[0] + "[2]"], slow=False) == {
        "kernels_test_x": [large[0], large[0] + "[2]"],
        "kernels_test_cuda_sanitizers": small,
        "kernels_test_y": large[1:2],
        "kernels_test_z": large[2:],
    }


def test_a_compiler_that_is_not_there_is_named(check, monkeypatch, tmp_path: Path) -> None:
    """Asked of setup.py, whose own search falls back on the usual place of nvcc; a setuptools without bdist_wheel."""
    (tmp_path / "sitecustomize.py").write_text(OLD_SETUPTOOLS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    check.device, check.facts = "cuda", {}
    run, given = check.run, {}

    def run_all_but_the_build(name: str, command: list[str], limit: float, **environment: str) -> object:
        given[name] = environment
        return gpu_check.Outcome(name, "passed") if name == "build" else run(name, command, limit, **environment)

    monkeypatch.setattr(check, "run", run_all_but_the_build)
    built, skipped = gpu_check.build(check)
    assert built.status == "passed" and given["build"]["VMAMBA_BUILD"] == "auto"
    assert skipped.status == "skipped"
    assert skipped.detail.startswith(f"there is no nvcc in {tmp_path}, where CUDA_HOME points")


def test_a_step_that_hangs_is_cut_with_its_children(check) -> None:
    code = "import subprocess, sys, time; print('started'); "
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    outcome = check.run("hangs", ["-c", code + child], 2)
    assert outcome.status == "cut" and outcome.seconds < 30
    assert "started" in outcome.detail
    check.until = time.monotonic()
    assert check.run("late", ["-c", "pass"], 60).status == "cut"


def test_a_failure_is_told_by_its_last_line(check) -> None:
    outcome = check.run("fails", ["-c", "raise SystemExit('error: this and that')"], 60)
    assert (outcome.status, outcome.detail) == ("failed", "error: this and that")
    assert check.run("works", ["-c", "print(1)"], 60).status == "passed"


def test_tests_are_counted(check, tmp_path: Path) -> None:
    text = "import pytest\ndef test_good(): pass\ndef test_bad(): assert 0\ndef test_left(): pytest.skip('no thing')\n"
    (tmp_path / "test_it.py").write_text(text)
    outcome = gpu_check.pytest_outcome(check, "it", [str(tmp_path / "test_it.py")], "not gpu", 60)
    assert outcome.status == "failed"
    assert outcome.detail.startswith("1 passed, 1 failed, 1 skipped; FAILED ")
    assert "test_bad" in outcome.detail and "no thing" in outcome.detail


@pytest.mark.parametrize(("statuses", "code"), [(["passed", "skipped"], 0), (["failed"], 1), (["passed", "cut"], 1)])
def test_only_failures_fail(statuses: list[str], code: int, monkeypatch, tmp_path: Path) -> None:
    outcomes = [gpu_check.Outcome(f"step {i}", status, 1.0, "why") for i, status in enumerate(statuses)]
    monkeypatch.setattr(gpu_check, "STEPS", {"build": lambda check: iter(outcomes)})
    monkeypatch.setattr(gpu_check, "find_facts", lambda check: check.facts.update(torch="any"))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--out", str(tmp_path)])
    assert gpu_check.main() == code
    text = (tmp_path / "summary.md").read_text()
    assert all(f"| step {i} | {status} | 1 | why |" in text for i, status in enumerate(statuses))


def test_absent_modules_are_named() -> None:
    assert gpu_check.absent(("os", "no_such_module", "nor_this")) == "no_such_module, nor_this are not installed"
    assert gpu_check.absent(("os",)) == ""


def test_without_a_gpu_it_says_so(check, monkeypatch) -> None:
    check.device = "cuda"
    facts = "import json; print(json.dumps({'python': '3', 'torch': '2.10'}))"
    monkeypatch.setattr(gpu_check, "FACTS", facts)
    with pytest.raises(SystemExit, match="needs a CUDA device, and torch 2.10 .* sees none"):
        gpu_check.find_facts(check)
