"""The examples run: the U-Net and the UPerNet learn, the notebook's cells execute in order."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

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


def test_upernet_learns_from_a_folder(tmp_path):
    segment = load("segment")
    rng = np.random.default_rng(0)
    for split, count in (("training", 8), ("validation", 3)):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            labels = np.zeros((40, 56), np.uint8)
            row, column = rng.integers(0, (20, 36))
            labels[row : row + 20, column : column + 20] = 1
            image = (labels[..., None] * [120, 40, 10] + rng.integers(0, 90, (40, 56, 3))).astype(np.uint8)
            labels[:2] = segment.UNLABELLED
            Image.fromarray(image).save(tmp_path / "images" / split / f"{i}.jpg")
            Image.fromarray(labels).save(tmp_path / "annotations" / split / f"{i}.png")
    training = segment.Pairs(tmp_path, "training", 32, augment=True)
    validation = segment.Pairs(tmp_path, "validation", 32, augment=False)
    classes = segment.count_classes(training)
    assert classes == 2
    torch.manual_seed(0)
    encoder = timm.create_model("vmamba_tiny_s1l8", features_only=True, depths=(1, 1, 1, 1), dims=8)
    model = segment.UPerNet(encoder, classes, channels=16, auxiliary=True, auxiliary_channels=8)
    before = segment.evaluate(model, validation, classes)
    losses = segment.train(model, training, steps=40, batch=4, rate=3e-3)
    after = segment.evaluate(model, validation, classes)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert after.min() > max(0.5, before.min())
    segment.draw(model, validation, classes, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size[0] > 300


def test_the_notebook_runs():
    notebook = json.loads((EXAMPLES / "quick_start.ipynb").read_text(encoding="utf-8"))
    names: dict = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and all(cell["outputs"] == [] for cell in cells)
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert len(names["answers"]) == 3 and names["coarse"].shape[1] == 128
    assert names["picture"].size == (128, 128)
