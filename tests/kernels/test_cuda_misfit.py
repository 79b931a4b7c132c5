"""A CUDA library and a GPU that it has no code for: what it was built for, compared with capabilities made up here."""

from __future__ import annotations

import shutil
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch

from vmamba import doctor
from vmamba_kernels import native

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What a library of some architectures knows of itself, compiled as setup.py does it, without kernels."""
    setup = import_module("setup")

    @cache
    def make(architectures: str) -> Path:
        path = tmp_path_factory.mktemp("library") / "libvmamba_cuda.so"
        setup.run(setup.library_command(architectures.split(), ["-shared", "-o", str(path)]))
        return path

    return make


@pytest.fixture
def library(monkeypatch, compiled, request):
    """The module `native` with a library of some architectures and no kernels in the place of the CUDA library."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the library's own file with")
    path = compiled(request.param)
    stand_in = native.Library("cuda", loaded=True)
    monkeypatch.setattr(stand_in, "path", lambda: path)
    monkeypatch.setitem(native._libraries, "cuda", stand_in)
    native._cuda_symbols.cache_clear()
    yield native
    native._cuda_symbols.cache_clear()


@pytest.mark.parametrize("library", ["8.0 9.0a 10.0f 12.0+PTX"], indirect=True)
def test_code_runs_on_later_minor_versions_and_ptx_on_all_later_gpus(library):
    runs = {(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), (13, 0)}
    asked = {(major, minor) for major in range(5, 14) for minor in (0, 1, 3, 6, 9)} | runs
    found = {capability for capability in asked if not library.cuda_misfit(capability)}
    assert found == {c for c in asked if c[0] == 8 or c == (9, 0) or c[0] in (10, 12, 13)}
    assert runs <= found


@pytest.mark.parametrize("library", ["9.0"], indirect=True)
def test_the_remedy_names_the_architecture_to_build(library):
    assert library.cuda_misfit((9, 0)) == ""
    said = library.cuda_misfit((12, 0))
    assert "carries code for 9.0, and this GPU has capability 12.0" in said and "\n" not in said
    assert "TORCH_CUDA_ARCH_LIST=12.0 VMAMBA_BUILD=cuda pip install" in said


@pytest.mark.parametrize("library", ["9.0"], indirect=True)
def test_the_doctor_names_the_gpu_that_is_refused(library, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: [(9, 0), (8, 6)][index])
    (line,) = doctor.misfits()
    assert line.startswith("cuda:1: libvmamba_cuda.so carries code for 9.0") and "8.6" in line
    monkeypatch.setattr(doctor, "backends", lambda: ([("ss2d", "cuda", "cuda", "", "")], []))
    assert doctor.main(["--brief"]) == 1
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("library", ["9.0"], indirect=True)
def test_a_backend_that_refuses_is_not_run_by_the_doctor(library, monkeypatch):
    monkeypatch.setattr(doctor, "misfits", lambda: ["cuda:0: no code"])
    monkeypatch.setattr(native, "explain", lambda: [native.Row("ss2d", "cuda", "cuda", "")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert doctor.backends() == ([("ss2d", "cuda", "cuda", "refuses a GPU", "")], [])


@pytest.mark.parametrize("library", ["9.0"], indirect=True)
def test_atomics_are_asked_for_and_given_back(library):
    asked = library._cuda_symbols().vmamba_cuda_use_atomics
    with library.use_cuda_atomics():
        with library.use_cuda_atomics(False):
            assert asked(0) == 0
        assert asked(1) == 1
    assert asked(0) == 0


def test_atomics_without_the_library_are_one_error_with_the_remedy(monkeypatch):
    monkeypatch.setitem(native._libraries, "cuda", native.Library("cuda", reason="no library; build it"))
    native._cuda_symbols.cache_clear()
    with pytest.raises(RuntimeError, match="build it"), native.use_cuda_atomics():
        pass
    assert native.cuda_misfit((9, 0)) == ""


def test_every_launch_asks_before():
    """queue_of, through which every operator comes to its stream, asks; no other file takes a stream."""
    sources = ROOT / "kernels" / "csrc" / "cuda"
    takers = [path.name for path in sources.iterdir() if "get_current_cuda_stream" in path.read_text()]
    assert takers == ["tensors.h"] and "= misfit(" in (sources / "tensors.h").read_text()
    operators = [path.name for path in sources.glob("*.cu") if "STABLE_TORCH_LIBRARY_IMPL" in path.read_text()]
    assert len(operators) == 4 and all("queue_of(" in (sources / name).read_text() for name in operators)
