"""The gallery's pictures are small, and the page shows those that are there with how they were made."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from analyze import gallery
from analyze.field import contribution
from analyze.subject import open_subject
from docs.generate.gallery import pictures


def test_a_picture_is_made_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    before = path.stat().st_size
    assert gallery.shrink(path, before // 3) == path.stat().st_size <= before // 3
    assert gallery.shrink(path, before // 12) <= before // 12 and Image.open(path).width < 160
    with pytest.raises(ValueError, match="draw fewer panels"):
        gallery.shrink(path, 100)


def test_the_page_shows_what_is_there(tmp_path):
    assert pictures(tmp_path) == "There is no picture yet."
    about = {"title": "Maps", "date": "2026-01-02T03:04", "method": "|M| by hand"}
    about |= {"command": "python -m analyze.gallery --only attention", "machine": "a CPU, 2 threads"}
    about["pictures"] = {"A map": "a.png", "Gone": "b.png"}
    (tmp_path / "a.json").write_text(json.dumps(about))
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    text = pictures(tmp_path)
    assert "**Maps**, 2026-01-02" in text and "![A map](images/a.png)" in text and "b.png" not in text
    assert r"`python -m analyze.gallery --only attention` on a CPU, 2 threads. \|M\| by hand" in text


@pytest.mark.slow
def test_every_part_is_drawn(tmp_path, monkeypatch, capsys, small_config, small_weights):
    few = {name: gallery.photographs()[name] for name in gallery.PHOTOGRAPHS[:1]}
    settings = {"DESIGNS": (str(small_config), "test_resnet"), "SCANNED": (str(small_config),), "SIZES": (32,)}
    settings |= {"GROWING": ("test_resnet",), "GROWN": (32,)}
    for name, value in {**settings, "BATCHES": (1,), "TURNS": 1, "photographs": lambda: few}.items():
        monkeypatch.setattr(gallery, name, value)
    assert gallery.main(["--out", str(tmp_path), "--trained", str(small_weights)]) == 0
    names = ["attention_small", "erf", "erf_trained", "growth", "scaling", "throughput"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{n}.{kind}" for n in names for kind in ("json", "png")
    ]
    text = pictures(tmp_path)
    for part in gallery.PARTS:
        assert f"`python -m analyze.gallery --only {part}" in text
    assert text.count("![") == len(names) and "test_resnet, branches open" in (tmp_path / "erf.json").read_text()
    assert gallery.main(["--only", "trained", "--trained", "none.pth", "--out", str(tmp_path)]) == 2
    assert "run `make train`" in capsys.readouterr().err


def test_branches_that_start_at_zero_are_opened():
    """With them closed, a ResNet's centre sees the few pixels that its strides pick; open, it sees around them."""
    subject = open_subject("test_resnet", None, (64, 64), "cpu")
    x = torch.rand(1, 3, 64, 64)
    closed = int((contribution(subject.network, x) > 0).sum())
    gallery.with_open_branches(subject)
    assert int((contribution(subject.network, x) > 0).sum()) > closed
    assert subject.name == "test_resnet, branches open"
