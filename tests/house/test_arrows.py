"""The house rules that a machine can check: arrows, import names, sizes of files, forbidden calls."""

from __future__ import annotations

import ast
import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import vmamba

ROOT = Path(__file__).resolve().parents[2]
APPLICATIONS = ("classification", "detection", "segmentation", "analyze")
# Each room may import itself and the rooms named here.
ARROWS = {
    "vmamba_kernels": (),
    "vmamba": ("vmamba_kernels",),
    **dict.fromkeys(APPLICATIONS, ("vmamba", "vmamba_kernels")),
}
FOLDERS = {"vmamba_kernels": ROOT / "kernels" / "vmamba_kernels", "vmamba": ROOT / "vmamba"}
FOLDERS |= {application: ROOT / application for application in APPLICATIONS}


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py")) if folder.is_dir() else []


def imported_roots(path: Path) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            roots.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called == "import_module" and isinstance(node.args[0].value, str):
                roots.add(node.args[0].value.split(".")[0])
    return roots


PYTHON = [path for folder in FOLDERS.values() for path in sources(folder)]
NATIVE = [p for p in (ROOT / "kernels" / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]


ROOMS = [room for room in ARROWS if FOLDERS[room].is_dir()]


def test_the_rooms_are_found():
    assert {"vmamba_kernels", "vmamba", "classification"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_run_one_way(room):
    allowed = {room, *ARROWS[room]}
    assert sources(FOLDERS[room]), f"{FOLDERS[room]} holds no Python files"
    for path in sources(FOLDERS[room]):
        wrong = (imported_roots(path) & set(ARROWS)) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}; {room} may import {sorted(allowed)}"


# The benchmarks of whole networks; the others measure operators, and need nothing of what is built on them.
OF_NETWORKS = {"backbone", "compiled", "floor", "memory", "vim_block"}


def test_benchmarks_of_operators_need_the_kernels_alone():
    found = {path.stem: imported_roots(path) & set(ARROWS) for path in (ROOT / "kernels" / "benchmarks").glob("*.py")}
    assert OF_NETWORKS < set(found)
    wrong = {name: roots for name, roots in found.items() if name not in OF_NETWORKS and roots - {"vmamba_kernels"}}
    assert not wrong


def test_the_arrow_check_sees_a_wrong_import(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("import os\n\ndef f():\n    from classification.main import main\n")
    assert imported_roots(planted) == {"os", "classification"}
    planted.write_text("import importlib\nimportlib.import_module('classification.main')\n")
    assert imported_roots(planted) == {"importlib", "classification"}
    planted.write_text("from importlib import import_module\nimport_module('detection')\nimport_module('.own', 'x')\n")
    assert imported_roots(planted) == {"importlib", "detection", ""}


def test_a_folder_is_importable_only_under_its_own_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not [path for path in PYTHON if path.name == "utils.py"], "name the thing"


def test_files_are_short():
    lines = {p: len(p.read_text().splitlines()) for p in PYTHON + NATIVE if p.name != "__init__.py"}
    longest = max(lines, key=lambda p: lines[p])
    assert lines[longest] <= 800, f"{longest.relative_to(ROOT)} has {lines[longest]} lines"
    assert statistics.median(lines.values()) < 200
    assert sum(n <= 500 for n in lines.values()) >= 0.9 * len(lines)


FORBIDDEN_CALLS = {"eval", "exec", "__import__"}


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_forbidden_constructs(path):
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute):
            unsafe = node.attr in {"load", "loads"} and getattr(node.value, "id", "") == "pickle"
            assert not unsafe, f"{where}: pickle"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{where}: {node.func.id}()"
        if isinstance(node, ast.keyword) and node.arg == "weights_only":
            assert getattr(node.value, "value", None) is True, f"{where}: weights_only must be True"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"


def sys_path_lines(path: Path) -> list[int]:
    """Return the lines that touch `sys.path`, by attribute or by `from sys import path`."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text())):
        attribute = isinstance(node, ast.Attribute) and node.attr == "path" and getattr(node.value, "id", "") == "sys"
        imported = isinstance(node, ast.ImportFrom) and node.module == "sys" and node.level == 0
        if attribute or (imported and any(alias.name == "path" for alias in node.names)):
            lines.append(node.lineno)
    return lines


BESIDE = [ROOT / "setup.py", *(ROOT / "docs").rglob("*.py"), *(ROOT / "kernels" / "benchmarks").glob("*.py")]
BESIDE += [path for path in sources(ROOT / "tests") if path != Path(__file__).resolve()]


def test_nothing_touches_sys_path():
    assert (ROOT / "kernels" / "benchmarks" / "ss2d.py") in BESIDE
    found = {str(path.relative_to(ROOT)): sys_path_lines(path) for path in PYTHON + BESIDE}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize("line", ["import sys; sys.path.insert(0, 'x')", "from sys import argv, path as p"])
def test_the_sys_path_check_sees_both_spellings(tmp_path, line):
    planted = tmp_path / "planted.py"
    planted.write_text(f"import os.path\n{line}\nprint(os.path)\n")
    assert sys_path_lines(planted) == [2]


def run_python(code: str, cwd: Path = ROOT) -> str:
    answer = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_import_vmamba_is_light():
    heavy = ("torch", "timm", "numpy", "triton", "mmengine")
    assert run_python(f"import sys, vmamba; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_import_vmamba_models_registers_with_timm():
    loaded = "[m for m in ('triton', 'mmengine', 'mmdet') if m in sys.modules and m not in before]"
    code = f"import sys, timm; before = set(sys.modules); import vmamba.models; print({loaded}); "
    used, known_names = run_python(code + "print(*timm.list_models())").splitlines()[-2:]
    assert used == "[]", "Triton and mmengine load at their first use"
    known = set(known_names.split())
    ours = vmamba.list_models()
    assert len(ours) >= 9 and set(ours) <= known
    assert {name for name in known if "vmamba" in name} == set(vmamba.list_models("*vmamba*"))


def test_a_kernels_package_of_others_is_not_shadowed(tmp_path):
    """Another installed `kernels` distribution must win over the checkout's `kernels/` folder."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("NAME = 'other'\n")
    metadata = tmp_path / "kernels-9.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 9.1\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels, importlib.metadata as m; "
    assert run_python(code + "print(kernels.NAME, m.version('kernels'))") == "other 9.1"


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_imports_beside_the_checkout():
    """transformers looks for a distribution `kernels` too."""
    assert run_python("import transformers; print(transformers.__version__ != '')").splitlines()[-1] == "True"
