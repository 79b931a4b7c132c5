"""``python -m vmamba.weights inspect`` and ``publish``."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from yacs.config import CfgNode

import vmamba
from vmamba.models.vssm_layouts import in_layout
from vmamba.weights import load_checkpoint, load_weights, verify
from vmamba.weights.__main__ import main
from vmamba.weights.guessing import models_that_fit
from vmamba.weights.inspecting import inspect_file


@pytest.fixture(autouse=True)
def two_models(make, monkeypatch):
    """Two small models by name in place of the registered ones, whose files would be large."""
    changes = {"small": {}, "smaller": {"depths": [1, 1]}}
    monkeypatch.setattr(vmamba, "list_models", lambda pattern="": sorted(changes))
    monkeypatch.setattr(vmamba, "create_model", lambda name, **more: make(**{**changes[name], **more}))


@pytest.fixture
def state(make):
    return make(num_classes=10).state_dict()


def test_inspect_tells_what_is_inside(state, tmp_path, capsys):
    path = tmp_path / "vssm1_tiny_0230s_ckpt_epoch_264.pth"
    config = CfgNode({"MODEL": {"NAME": "vssm1_tiny_0230s", "VSSM": {"DEPTHS": [2, 2, 8, 2]}}})
    averaged = {f"module.{key}": value.half() for key, value in in_layout(state, "single_file").items()}
    torch.save({"model": state, "model_ema": averaged, "config": config, "epoch": 264, "optimizer": {"a": 1}}, path)
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    count = sum(value.numel() for value in state.values())
    for line in (
        f"file     {path}",
        f"format   torch zip, {path.stat().st_size:,} bytes",
        f"sha256   {hashlib.sha256(path.read_bytes()).hexdigest()} (no manifest lists it)",
        "release  vmamba_tiny_s1l8, classification, #v2cls, score 82.6 %",
        "model    small",
        f"weights  model: 69 tensors (69 float32), {count:,} numbers, layout present",
        f"weights  model_ema: 69 tensors (69 float16), {count:,} numbers, layout single_file, keys behind module.",
        "also     epoch: 264",
        "also     optimizer: dict of 1",
        "  MODEL.NAME: vssm1_tiny_0230s",
        "  MODEL.VSSM.DEPTHS: [2, 2, 8, 2]",
    ):
        assert line in out.splitlines(), line
    assert main(["inspect", str(path), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["models"] == ["small"] and read["weights"][0]["parameters"] == count
    assert main(["inspect", str(path), "--keys", "--entry", "model_ema"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(state) == 69 and "module.patch_embed.0.weight  float16  [8, 3, 4, 4]" in lines


def test_inspect_of_other_weights(tmp_path):
    torch.save({"conv.weight": torch.ones(2), "layers.weight": torch.ones(3)}, tmp_path / "c.pth")
    found = inspect_file(tmp_path / "c.pth")
    assert found.models == () and found.weights[0].layout == "other" and found.weights[0].parameters == 5
    assert "model    none of vmamba.list_models() has these keys and shapes" in found.text()
    torch.save({"epoch": 3}, tmp_path / "d.pth")
    assert inspect_file(tmp_path / "d.pth").weights == ()


def test_publish_writes_weights_manifest_and_card(state, tmp_path, capsys, equal):
    torch.save(
        {"model": state, "class_names": list("abcdefghij"), "max_accuracy": 71.5, "epoch": 9}, tmp_path / "c.pth"
    )
    out = tmp_path / "out"
    assert main(["publish", str(tmp_path / "c.pth"), "--out", str(out), "--license", "mit"]) == 0
    path, card = (out / line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert re.fullmatch(r"small-[0-9a-f]{8,}\.safetensors", path.name)
    assert digest.startswith(path.stem.rpartition("-")[2])
    assert sorted(p.name for p in out.iterdir()) == sorted([path.name, card.name, "manifest.json"])
    assert list(json.loads((out / "manifest.json").read_text())["files"]) == [path.name] and verify(path) is None
    loaded = load_checkpoint(path)
    assert equal(loaded["model"], state) and loaded["class_names"] == list("abcdefghij")

    text = card.read_text()
    for part in (
        digest,
        f"`{path.name}`",
        "| epoch | 9 |",
        "| top-1 | 71.5 |",
        "10: a, b, c, d, e, ...",
        "license: mit",
    ):
        assert part in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert 'create_model("small", num_classes=10)' in code
    model = vmamba.create_model("small", num_classes=10)
    assert load_weights(model, path, quiet=True).clean

    assert main(["publish", str(path), "--out", str(tmp_path / "again")]) == 0
    again = load_checkpoint(capsys.readouterr().out.splitlines()[0])
    assert equal(again["model"], state) and again["epoch"] == 9


def test_publish_wants_a_name_it_can_believe(make, tmp_path, capsys):
    torch.save({"model": make(depths=[2, 2]).state_dict()}, tmp_path / "c.pth")
    out = ["--out", str(tmp_path / "out")]
    for more, said in (
        ([], "no model of vmamba.list_models() fits, so --name must say what it is"),
        (["--name", "small"], "is no 'small': "),
        (["--name", "../up"], "letters, digits"),
    ):
        assert main(["publish", str(tmp_path / "c.pth"), *out, *more]) == 2
        errors = capsys.readouterr().err
        assert said in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert main(["publish", str(tmp_path / "c.pth"), *out, "--name", "my-net"]) == 0
    path, card = capsys.readouterr().out.splitlines()
    assert "my-net-" in path and "# my-net" in open(card).read()


def test_a_backbone_and_a_headless_file_fit_their_classifier(state):
    backbone = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    backbone |= {"outnorm1.weight": torch.ones(16)}
    wrapped = {"state_dict": {f"backbone.{key}": value for key, value in backbone.items()} | {"neck.w": torch.ones(2)}}
    assert models_that_fit(wrapped) == ["small"]
    assert models_that_fit({"a": torch.ones(1)}) == []


def test_the_command_says_what_it_can_do(capsys):
    assert main([]) == 2 and main(["--help"]) == 0
    assert capsys.readouterr().out.count("python -m vmamba.weights publish") == 2
    assert main(["publsh", "x"]) == 2
    assert "Did you mean 'publish'" in capsys.readouterr().err
    assert main(["convert", "a.pth", "b.pth", "--layuot", "x"]) == 2
    assert "unknown flag '--layuot'. Did you mean '--layout'" in capsys.readouterr().err
