"""What docs/weights.md says is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import vmamba
from vmamba.models.vssm_layouts import LAYOUTS
from vmamba.weights import RELEASED, load_weights
from vmamba.weights.__main__ import _COMMANDS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
LINES = re.findall(r"^python -m vmamba\.weights (.*)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_the_commands_parse(line):
    command, *words = shlex.split(line, comments=True)
    options = _COMMANDS[command][0]().parse(words)
    assert options.file == Path("FILE") and getattr(options, "layout", "present") in LAYOUTS


def test_the_report_is_as_shown(capsys):
    shown = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)[1].splitlines()
    source = vmamba.create_model("vmamba_tiny_s1l8").state_dict()
    model = vmamba.create_model("vmamba_tiny_s1l8", num_classes=10)
    load_weights(model, {"model": source}, allow_head_mismatch=True)
    assert capsys.readouterr().err.splitlines()[1:] == shown[1:]


def test_the_counts_and_layouts_are_right():
    tasks = [entry.task for entry in RELEASED]
    counts = [tasks.count(task) for task in ("classification", "detection", "segmentation")]
    assert "the {} checkpoints of the releases: {} classifiers, {} Mask R-CNN, {} UPerNet".format(
        len(tasks), *counts
    ) in " ".join(TEXT.split())
    assert all(f"| `{layout}` |" in TEXT for layout in LAYOUTS)
