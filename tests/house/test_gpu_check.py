"""`make gpu-check` without a GPU: torch, pytest and numpy are enough, what hangs is cut, failures are counted."""

from __future__ import annotations

import importlib.util
import os
import re
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
