"""Every way to install: no compiler, one that does not fit, no torch, VMAMBA_BUILD=off. Each works and says what it is.

In copies of the checkout, so that the library that the tests beside these use stays where it is.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILED = shutil.ignore_patterns("*.so", "*.hash", "__pycache__")
NO_TORCH = "import sys\nsys.modules['torch'] = None\n"
# What a machine with neither network nor compiler has of them.
OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


def copy_of_the_checkout(folder: Path) -> Path:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("kernels", "vmamba"):
        shutil.copytree(ROOT / name, folder / name, ignore=COMPILED)
    return folder


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py of a copy, on a machine whose PATH holds nothing but what a test puts there."""
    copy_of_the_checkout(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("CXX", "CXXFLAGS", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "VMAMBA_BUILD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    spec = importlib.util.spec_from_file_location("setup_of_a_copy", tmp_path / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def program(folder: Path, name: str, says: str) -> None:
    """A program that complains and fails."""
    (folder / name).write_text(f'#!/bin/sh\necho "{says}" >&2\nexit 1\n')
    (folder / name).chmod(0o755)


def libraries(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "kernels" / "vmamba_kernels").glob("libvmamba*"))


def test_without_a_compiler_the_install_goes_on_and_names_the_remedy(setup, tmp_path, capsys):
    setup.build_native()
    said = capsys.readouterr().err
    assert "vmamba: no cpu library, the slower reference is used: there is no C++ compiler" in said
    assert "apt-get install g++" in said and "no cuda library" in said and libraries(tmp_path) == []


def test_what_was_asked_for_and_cannot_be_built_is_one_error(setup, monkeypatch):
    monkeypatch.setenv("VMAMBA_BUILD", "cpu")
    with pytest.raises(SystemExit, match="^error: VMAMBA_BUILD=cpu: the cpu library cannot be built: .* no C.. comp"):
        setup.build_native()
    monkeypatch.setenv("VMAMBA_BUILD", "gpu")
    with pytest.raises(SystemExit, match="^error: VMAMBA_BUILD=gpu is unknown; it is one of auto, cpu, cuda, off"):
        setup.build_native()


@pytest.mark.parametrize(
    "says", ["error: unrecognized command-line option '-std=c++17'", "nvcc fatal   : Unsupported gpu architecture"]
)
def test_a_compiler_that_does_not_fit_is_quoted_and_the_install_goes_on(setup, tmp_path, monkeypatch, capsys, says):
    """An old g++, and an nvcc older than the architectures: the library of before does not stay either."""
    for name in ("g++", "nvcc"):
        program(tmp_path / "bin", name, says)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "12.0")
    for name in ("libvmamba_cpu.so", "libvmamba_cpu.hash"):
        (setup.PACKAGE / name).write_text("of an earlier build")
    setup.build_native()
    said = capsys.readouterr().err
    assert f"no cpu library, the slower reference is used: g++ failed: {says}" in said
    assert f"no cuda library, the slower reference is used: nvcc failed: {says}" in said
    assert libraries(tmp_path) == []


def test_without_torch_the_build_goes_on_and_says_so(setup, monkeypatch, capsys):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    setup.build_native()
    said = capsys.readouterr().err
    assert "torch is not installed; pip install torch, then install again with --no-build-isolation" in said


def run(folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command in a copy of the checkout, which has no compiled library."""
    path = os.pathsep.join([str(folder), str(folder / "kernels")])
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_off_removes_what_was_built_and_the_doctor_names_what_is_used_instead(tmp_path):
    copy_of_the_checkout(tmp_path)
    (tmp_path / "kernels" / "vmamba_kernels" / "libvmamba_cpu.so").write_text("of an earlier build")
    built = run(tmp_path, "setup.py", "-q", "build_ext", VMAMBA_BUILD="off")
    assert built.returncode == 0 and libraries(tmp_path) == [], built.stderr
    said = run(tmp_path, "-m", "vmamba.doctor", "--brief")
    assert said.returncode == 0, said.stdout + said.stderr
    rows = [line.split(maxsplit=3) for line in said.stdout.splitlines() if " cpu " in line]
    assert {operator for operator, *_ in rows} >= {"ss2d", "selective_scan", "causal_conv1d", "pooled_scan"}
    for operator, _, backend, why in rows:
        if operator in ("conv2d", "cross_scan", "ssd"):  # made of PyTorch's own operators
            continue
        assert backend in ("reference", "unfused"), operator
        assert "no compiled library libvmamba_cpu.so; build it with" in why
    code = "import torch, vmamba; m = vmamba.create_model('vmamba_tiny_s1l8', depths=(1,), dims=8); "
    used = run(tmp_path, "-c", code + "m(torch.randn(1, 3, 40, 33)).sum().backward(); print('works')")
    assert used.stdout == "works\n", used.stderr


def test_without_torch_the_package_imports_and_the_doctor_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    for name in ("vmamba", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    said = run(tmp_path, "-m", "vmamba.doctor")
    assert said.returncode == 1 and "torch cannot be imported" in said.stdout, said.stderr
    assert "Next step: pip install -r requirements.txt" in said.stdout and "Traceback" not in said.stderr
    assert run(tmp_path, "-c", "import vmamba; print(vmamba.__version__)").stdout.startswith("0.")


@pytest.mark.slow
def test_pip_installs_it_without_network_or_compiler(tmp_path):
    """The wheel holds both packages and nothing generic, and serves from any folder."""
    source = copy_of_the_checkout(tmp_path)
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    done = run(source, *words, ".", VMAMBA_BUILD="off")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in target.iterdir() if "dist-info" not in p.name} == {"vmamba", "vmamba_kernels"}
    said = run(elsewhere, "-m", "vmamba.summary", "vmamba_tiny_s1l8", PYTHONPATH=str(target))
    assert said.returncode == 0 and "30,249,064" in said.stdout, said.stderr
