"""Every test that a page names exists, and the table of faults names one in each of its rows."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMED = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")


@functools.cache
def collected(file: str) -> set[str]:
    """The functions of a test file that pytest collects; none where there is no such file."""
    path = ROOT / file
    if not path.is_file():
        return set()
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def absent(text: str) -> list[str]:
    return [f"{file}::{test}" for file, test in NAMED.findall(text) if test not in collected(file)]


@pytest.mark.parametrize("page", [page for page in PAGES if "::test_" in page.read_text()], ids=lambda page: page.stem)
def test_a_page_names_tests_that_exist(page):
    assert absent(page.read_text()) == []


def test_a_renamed_test_would_be_noticed():
    assert absent("`tests/house/test_named_tests.py::test_gone`, `tests/gone.py::test_a`") == [
        "tests/house/test_named_tests.py::test_gone",
        "tests/gone.py::test_a",
    ]


def test_each_of_the_twenty_faults_has_a_test():
    rows = re.findall(r"^\| (\d+) \|(.*)$", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    assert all(NAMED.search(row) for _, row in rows)
