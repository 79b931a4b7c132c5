"""vmamba.summary: what it prints adds up, for our names, timm's and configuration files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from classification.config import load_config
from vmamba import summary
from vmamba.building import build
from vmamba.models.config_file import DEFAULTS, read_model_config
from vmamba.models.from_config import model_from_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs" / "classification").rglob("*.yaml"))


def printed(capsys, *argv: str) -> str:
    assert summary.main(list(argv)) == 0
    return capsys.readouterr().out


def rows(text: str) -> list[list[str]]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("part "))
    return [line.split() for line in lines[start + 2 : lines.index("", start)]]


@pytest.mark.parametrize(
    "argv",
    [
        ("vmamba_tiny_s1l8", "--size", "224x320"),
        ("vit_tiny_patch16_224", "--size", "96x128", "--batch", "3"),
        ("configs/classification/vmamba_digits.yaml",),
    ],
)
def test_the_parts_add_up(capsys, monkeypatch, argv):
    monkeypatch.chdir(ROOT)
    text = printed(capsys, *argv)
    parameters = int(re.search(r"parameters +([\d,]+)\n", text)[1].replace(",", ""))
    gflops = float(re.search(r"GFLOPs per image +([\d.]+)\n", text)[1])
    assert sum(int(row[-2].replace(",", "")) for row in rows(text)) == parameters
    assert sum(float(row[-1]) for row in rows(text)) == pytest.approx(gflops, abs=2e-5)
    memory = [float(x.replace(",", "")) for x in re.findall(r"activations, \w+ +([\d.,]+) MiB", text)]
    assert 0 < memory[0] <= memory[1]


def test_the_stages_of_a_model(capsys):
    text = printed(capsys, "vmamba_tiny_s1l8")
    assert "GFLOPs per image       4.905610" in text and "parameters             30,249,064" in text
    found = {row[0]: row[1] for row in rows(text)}
    assert found["layers.0.blocks"] == "1x96x56x56" and found["layers.3.blocks"] == "1x768x7x7"
    assert found["classifier"] == "1x1000"


def test_the_type_and_the_device_are_told(capsys):
    digits = str(ROOT / "configs" / "classification" / "vmamba_digits.yaml")
    assert "in float32 with" in printed(capsys, digits)
    text = " ".join(printed(capsys, digits, "--device", "cuda", "--dtype", "bfloat16").split())
    assert "in bfloat16 with the operators that this machine chooses for cuda" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_file_describes_the_trainers_model(path):
    config, _ = load_config(path)
    ours = read_model_config(path)
    with torch.device("meta"):
        shapes = [{k: v.shape for k, v in model_from_config(c).state_dict().items()} for c in (ours, config)]
    assert shapes[0] == shapes[1] and ours["DATA"]["IMG_SIZE"] == config.DATA.IMG_SIZE


def test_the_defaults_are_the_trainers():
    trainer, _ = load_config()
    for key, value in DEFAULTS["MODEL"].items():
        if key != "VSSM":
            assert trainer.MODEL[key] == value
    for key, value in DEFAULTS["MODEL"]["VSSM"].items():
        assert trainer.MODEL.VSSM[key] == value


def test_base_files_are_merged(tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL: {NUM_CLASSES: 7, VSSM: {EMBED_DIM: 8}}\n")
    (tmp_path / "a.yaml").write_text("BASE: [base.yaml]\nMODEL: {VSSM: {DEPTHS: [1, 1]}}\n")
    model = read_model_config(tmp_path / "a.yaml")["MODEL"]
    assert model["NUM_CLASSES"] == 7 and model["VSSM"]["EMBED_DIM"] == 8 and model["VSSM"]["DEPTHS"] == [1, 1]


def test_a_file_may_state_classes_for_timm_and_a_caller_others(tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL: {TYPE: timm, NAME: test_resnet, TIMM: {num_classes: 7}}\n")
    assert [build(str(tmp_path / "a.yaml"), num_classes=n)[0].num_classes for n in (None, 3)] == [7, 3]


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [", "is not yaml"),
        ("- 1", "a configuration is a mapping of keys, not list"),
        ("BASE: bad.yaml", "its BASE leads back"),
        ("BASE: none.yaml", "none.yaml cannot be read"),
        ("MODEL: {TYPE: resnet}", "MODEL.TYPE 'resnet' is unknown"),
        ("MODEL: {VSSM: {DEPTHS: [0]}}", "depths"),
    ],
)
def test_bad_files(tmp_path, capsys, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert summary.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


@pytest.mark.parametrize(
    "argv, words",
    [
        (["vmamba_tiny_s1l9"], "Did you mean 'vmamba_tiny_s1l8'"),
        (["none.yaml"], "none.yaml cannot be read"),
        (["vmamba_tiny_s1l8", "--size", "0x4"], "--size 0x4: give a positive number"),
        (["vmamba_tiny_s1l8", "--size", "4x4x4"], "--size 4x4x4"),
        (["vmamba_tiny_s1l8", "--batch", "0"], "--batch 0: give at least 1"),
        (["vanilla_vmamba_tiny", "--size", "3"], "does not run on images (1, 3, 3, 3)"),
        (["resnet18", "--sise", "3"], "Did you mean '--size'"),
        (["resnet18", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    ],
)
def test_bad_words(capsys, argv, words):
    assert summary.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
