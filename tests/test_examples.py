"""The examples run: the U-Net learns, the notebook's cells execute in order."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_u_net_learns():
    unet = load("unet")
    torch.manual_seed(0)
    model = unet.UNet("vmamba_tiny_s1l8", classes=3, depths=(1, 1, 1, 1), dims=16)
    before = unet.accuracy(model, 32)
    losses = unet.train(model.train(), steps=25, size=32)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert unet.accuracy(model, 32) > max(0.7, before)
    assert model(torch.zeros(1, 3, 45, 70)).shape == (1, 3, 45, 70)


def test_the_notebook_runs():
    notebook = json.loads((EXAMPLES / "quick_start.ipynb").read_text(encoding="utf-8"))
    names: dict = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and all(cell["outputs"] == [] for cell in cells)
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert len(names["answers"]) == 3 and names["coarse"].shape[1] == 128
    assert names["picture"].size == (128, 128)
