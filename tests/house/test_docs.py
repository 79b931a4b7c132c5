"""The documentation builds without a warning, reads offline, and what it tells one to run is there and runs."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

import vmamba
import vmamba_kernels
from classification.config import load_config
from docs.generate import contents, zoo
from docs.generate.docstrings import as_rst
from vmamba.models.forward_type import VERSIONS
from vmamba.weights import RELEASED
from vmamba.weights.released import released_classifier
from vmamba_kernels.cross_scan import orders

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


PACKAGES = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])


def blocks(language: str) -> list[tuple[Path, str]]:
    return [(page, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def build(source: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", out / "doctrees", source, out / "site"]
    environment = {**os.environ, "PYTHONPATH": PACKAGES}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning is an error."""
    out = tmp_path_factory.mktemp("docs")
    answer = build(DOCS, out)
    assert answer.returncode == 0, answer.stderr[-4000:]
    return out / "site"


class References(HTMLParser):
    """What a page loads, what it links to, and the names that others may link to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.names: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        self.names.add(values.get("id", ""))
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(values.get("src", ""))
        elif tag == "link" and values.get("rel") not in ("index", "search", "next", "prev"):
            self.loaded.append(values.get("href", ""))
        elif tag == "a":
            self.linked.append(values.get("href", ""))


def test_every_page_is_built(site):
    for page in PAGES:
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file(), page
    assert not list(site.rglob("*.py")) and (site / "searchindex.js").is_file()


def test_the_site_reads_offline_and_its_links_lead_somewhere(site):
    pages = {path: References(path) for path in site.rglob("*.html")}
    for path, found in pages.items():
        for target in [*found.loaded, *found.linked]:
            if not target or target.startswith(("data:", "mailto:")):
                continue
            outside = re.match(r"(https?:)?//", target)
            assert not (outside and target in found.loaded), f"{path.name} loads {target}"
            if outside or target in ("#", "genindex.html"):
                continue
            file, _, anchor = target.partition("#")
            other = (path.parent / file.split("?")[0]).resolve() if file else path
            assert other.exists(), f"{path.name}: {target}"
            if anchor and other in pages:
                assert anchor in pages[other].names, f"{path.name}: {target}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_generated_parts_hold_every_name(site):
    text = (site / "zoo.html").read_text()
    assert all(f'<span class="pre">{name}</span>' in text for name in vmamba.list_models())
    assert all(entry.file in text for entry in RELEASED)
    types = (site / "forward_types.html").read_text()
    assert all(f'<span class="pre">{name}</span>' in types for name in [*VERSIONS, "cross2d", "cascade2d", "rot90"])
    recipes = (site / "recipes.html").read_text()
    assert all(path.stem in recipes for path in (ROOT / "configs" / "classification").glob("*.yaml"))
    api = (site / "api" / "kernels.html").read_text()
    assert all(f'id="vmamba_kernels.{name}"' in api for name in vmamba_kernels.__all__)


def test_a_warning_fails_the_build(tmp_path):
    """A small source with a page that no table of contents names, and a link to a page that is gone."""
    (tmp_path / "conf.py").write_text('extensions = ["myst_parser", "docs.generate.extension"]\n')
    (tmp_path / "index.md").write_text("# A\n\n[gone](gone.md)\n")
    (tmp_path / "lost.md").write_text("# B\n")
    answer = build(tmp_path, tmp_path / "out")
    assert answer.returncode != 0 and "gone.md" in answer.stderr and "lost.md" in answer.stderr, answer.stderr


def test_the_contents_name_every_page_once():
    named = re.findall(r"^[\w/]+$", contents.tree(), re.MULTILINE)
    assert sorted(named) == sorted(str(p.relative_to(DOCS).with_suffix("")) for p in PAGES if p.stem != "index")


def test_the_zoo_and_the_readme_agree():
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| [\d.]+ M \| ([\d.]+) G \| ([\d.]+) \|", readme, re.MULTILINE)
    assert len(rows) >= 12
    for name, cost, top1 in rows:
        entry = released_classifier(name)
        assert zoo.PUBLISHED_GMACS[name] == cost
        assert float(top1) == round(entry.score if entry else zoo.UNRELEASED_TOP1[name], 1), name


def test_a_docstring_becomes_text_with_code():
    lines = ["The K*D sums of `x_` (``[B, L]``), a_ |z|.", "", "Args:", "    x: [B, *]. y, z: more", "        of it."]
    lines += ["    w: last.", "", "See this::", "", "    a* `b`"]
    assert as_rst(lines) == [
        r"The K\*D sums of ``x_`` (``[B, L]``), a\_ \|z\|.",
        "",
        "**Arguments**",
        "",
        r"- ``x``: [B, \*]. y, z: more of it.",
        "- ``w``: last.",
        "",
        "See this::",
        "",
        "    a* `b`",
        "",
    ]


# The operators' pages show fragments, which name tensors that the text around them describes.
PYTHON = [(page, text) for page, text in blocks("python") if page.parent == DOCS]


@pytest.fixture(scope="module")
def released_file(tmp_path_factory) -> Path:
    """A folder with a file of the name, keys and shapes of released weights."""
    folder = tmp_path_factory.mktemp("released")
    entry = released_classifier("vmamba_tiny_s1l8")
    assert entry is not None
    torch.save({"model": vmamba.create_model(entry.model).state_dict()}, folder / entry.file)
    return folder


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[page.stem for page, _ in PYTHON])
def test_a_python_block_runs(page, text, released_file, tmp_path, monkeypatch):
    """The released file lies in the current folder and in that of the weights; registries are put back."""
    monkeypatch.chdir(released_file)
    monkeypatch.setenv("VMAMBA_WEIGHTS", str(released_file))
    monkeypatch.setattr(orders, "_orders", dict(orders._orders))
    if "mmengine" in text:
        monkeypatch.setattr(MODELS, "_module_dict", dict(MODELS._module_dict))
    (tmp_path / "block.py").write_text(text)
    runpy.run_path(str(tmp_path / "block.py"))


@pytest.mark.parametrize(("page", "text"), [case for case in blocks("python") if case[0].parent != DOCS])
def test_a_fragment_is_python(page, text):
    compile(text, page.name, "exec")


def commands() -> Iterator[tuple[str, str]]:
    """Every command of a bash block: (page, command) with its continued lines joined."""
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.partition(" #")[0].split("&&"):
                if command.strip():
                    yield page.stem, command.strip()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def help_of(module: str, words: list[str], capsys, monkeypatch) -> str:
    """The help of a module's command line, and of its subcommand where the first word is one."""
    subcommand = [words[0]] if words and words[0].isalpha() and words[0].islower() else []
    monkeypatch.setattr(sys, "argv", [module, *subcommand, "-h"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not stopped.value.code, (module, subcommand)
    return capsys.readouterr().out


def check_flags(words: list[str], known: str) -> None:
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}(?![\w-])", known), f"{word} is not a flag"


@pytest.mark.parametrize(("page", "command"), list(commands()))
def test_a_command_is_there_with_its_flags(page, command, capsys, monkeypatch):
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    for word in words:
        if word.startswith(("configs/", "kernels/")):
            assert (ROOT / word).is_file(), word
    program, *rest = words
    if program == "make":
        assert rest and set(rest) <= targets()
    elif program == "pip":
        assert rest[0] == "install" and all((ROOT / w).exists() for w in rest[1:] if not w.startswith("-"))
    elif program == "source":
        assert rest == [".venv/bin/activate"]
    elif "-m" in rest:
        module, own = rest[rest.index("-m") + 1], rest[rest.index("-m") + 2 :]
        assert program in ("python", "torchrun")
        check_flags(own, help_of(module, own, capsys, monkeypatch))
    else:
        assert program == "python", f"{page}: a command that no test knows: {command}"
        check_flags(rest[1:], "".join(p.read_text() for p in (ROOT / rest[0]).parent.glob("*.py")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_prose_exist(page):
    text = page.read_text()
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    for script in re.findall(
        r"(?<![\w/])(?:configs|kernels|tests|docs|classification|vmamba)/[\w/]+\.(?:py|md|yaml)", text
    ):
        assert any((folder / script).is_file() for folder in (ROOT, DOCS, ROOT / "kernels")), script
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert target in targets(), target


@pytest.mark.parametrize("text", [text for _, text in blocks("yaml")])
def test_a_recipe_of_the_pages_is_read(text, tmp_path):
    recipes = ROOT / "configs" / "classification"
    (tmp_path / "recipe.yaml").write_text(text)
    for base in recipes.glob("*.yaml"):
        (tmp_path / base.name).symlink_to(base)
    config, stated = load_config(tmp_path / "recipe.yaml")
    assert config.MODEL.NAME == "my_tiny" and "MODEL.VSSM.SSM_FORWARDTYPE" in stated
