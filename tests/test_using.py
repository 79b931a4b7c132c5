"""The one-liners and vmamba.features: the same answers as the pieces by hand, and one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import vmamba
from vmamba import features, predict
from vmamba.class_names import described, imagenet_names
from vmamba.errors import UserError
from vmamba.gradient_pictures import class_gradient, overlay, receptive_field
from vmamba.import_times import measured
from vmamba.models.from_config import model_from_config
from vmamba.models.vssm import VSSM
from vmamba.weights import CheckpointError, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
VARIANT = {"IN_CHANS": 3, "DEPTHS": [1, 1], "EMBED_DIM": 8, "SSM_D_STATE": 1, "SSM_FORWARDTYPE": "v05_noz"}
DATA = {"IMG_SIZE": 32, "MEAN": [0.5, 0.5, 0.5], "STD": [0.5, 0.5, 0.5], "INTERPOLATION": "bicubic"}
MODEL = {"TYPE": "vssm", "NAME": "small", "NUM_CLASSES": 3, "DROP_PATH_RATE": 0.0, "VSSM": VARIANT}


@pytest.fixture
def weights(tmp_path):
    config = {"MODEL": MODEL, "DATA": DATA}
    names = ["n01440764", "bee", "cat"]
    save_checkpoint(
        tmp_path / "best.pth",
        {"model": model_from_config(config).state_dict(), "config": config, "class_names": names},
    )
    return tmp_path / "best.pth"


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "deep/c.png"):
        Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def network(**kwargs) -> VSSM:
    torch.manual_seed(0)
    return VSSM(depths=(1, 1), dims=8, **{"num_classes": 4, **kwargs}).eval()


def test_a_path_and_a_picture_of_a_checkpoint_give_the_same_answers(weights, images):
    by_path = vmamba.classify_image(images / "a.png", weights=weights, top_k=2, device="cpu")
    assert by_path == vmamba.classify_image(Image.open(images / "a.png"), weights=weights, top_k=2, device="cpu")
    assert by_path == next(iter(predict.Predictor(weights, "cpu")([images / "a.png"], 2)))
    assert len(by_path) == 2 and by_path[0][1] >= by_path[1][1] and sum(p for _, p in by_path) <= 1


def test_a_network_is_used_as_it_is(images):
    model = network()
    answers = vmamba.classify_image(images / "a.png", model=model, top_k=9)
    assert sorted(name for name, _ in answers) == ["0", "1", "2", "3"]
    assert sum(p for _, p in answers) == pytest.approx(1)


def test_a_given_picture_stays_as_it_is(weights):
    picture = Image.new("RGB", (40, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.info["exif"] = exif.tobytes()
    vmamba.classify_image(picture, weights=weights)
    assert picture.size == (40, 24)


def test_a_model_by_name_with_a_file(tmp_path, images):
    model = vmamba.create_model("vmamba_tiny_s1l8", num_classes=2, device="cpu")
    save_checkpoint(tmp_path / "w.pth", {"model": model.state_dict(), "class_names": ["yes", "no"]})
    answers = vmamba.classify_image(images / "a.png", model="vmamba_tiny_s1l8", weights=tmp_path / "w.pth")
    assert {name for name, _ in answers} == {"yes", "no"}


def test_names_of_imagenet():
    names = imagenet_names()
    assert len(set(names)) == 1000 and names[0] == "tench" and names[999] == "toilet tissue"
    assert described(["n01440764", "n01443537"]) == ["tench", "goldfish"]
    assert described(["n01440764", "bee"]) == ["n01440764", "bee"] and described(["n99999999"]) == ["n99999999"]
    thousand = network(num_classes=1000)
    picture = Image.new("RGB", (32, 32))
    assert {name for name, _ in vmamba.classify_image(picture, model=thousand)} <= set(names)


def test_features_are_the_stages_maps(images):
    model, paths = network(), [images / "a.png", images / "b.jpg", images / "deep/c.png"]
    last, first = vmamba.extract_features(paths, model=model, level=[-1, 0], batch=2)
    assert first.shape == (3, 8, 56, 56) and last.shape == (3, 16, 28, 28)
    one = vmamba.extract_features(images / "b.jpg", model=model)
    assert torch.allclose(one, last[1:2], atol=1e-5)
    pooled = vmamba.extract_features(paths, model=model, level=1, pool=True)
    assert torch.allclose(pooled, last.mean((2, 3)), atol=1e-5) and not pooled.requires_grad


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_command_writes_what_the_function_gives(weights, images, tmp_path, suffix, capsys):
    out = tmp_path / "new" / f"features{suffix}"
    argv = [images, "--out", out, "--weights", weights, "--level", "0,-1", "--pool", "--batch", 2, "--device", "cpu"]
    assert features.main([str(word) for word in argv]) == 0
    assert "level0 3x8" in capsys.readouterr().out
    paths = [images / "a.png", images / "b.jpg", images / "deep/c.png"]
    expected = vmamba.extract_features(paths, weights=weights, level=[0, -1], pool=True, batch=2, device="cpu")
    if suffix == ".npz":
        with np.load(out) as file:
            found = [file["level0"], file["level-1"]]
            assert file["images"].tolist() == [str(p) for p in paths]
    else:
        with safe_open(out, "np") as file:
            found = [file.get_tensor("level0"), file.get_tensor("level-1")]
            assert json.loads(file.metadata()["images"]) == [str(p) for p in paths]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs.numpy())
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name]


def bad(call, words, error=UserError):
    with pytest.raises(error, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_bad_input_of_the_one_liners(weights, images, tmp_path, monkeypatch):
    picture = images / "a.png"
    monkeypatch.setenv("VMAMBA_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    bad(lambda: vmamba.classify_image(picture), "model, weights: name a model")
    bad(lambda: vmamba.classify_image(picture, model="vmamba_tny_s1l8"), "Did you mean 'vmamba_tiny_s1l8'")
    bad(lambda: vmamba.classify_image(picture, model="vmamba_tiny_s1l8"), "fetch it by hand", CheckpointError)
    bad(lambda: vmamba.classify_image(picture, model=7), "model: expected a name or a network")
    bad(lambda: vmamba.classify_image(picture, model=network(), weights=weights), "weights: a network brings its own")
    bad(lambda: vmamba.classify_image(tmp_path / "no.png", weights=weights), "there is no image file")
    bad(lambda: vmamba.classify_image(images / "notes.txt", weights=weights), "cannot be read as an image")
    bad(lambda: vmamba.classify_image(3, weights=weights), "image: expected a path or a PIL image, got int")
    bad(lambda: vmamba.classify_image(picture, weights=weights, top_k=0), "top_k: expected at least 1")
    bad(lambda: vmamba.extract_features([], weights=weights), "images: there is none")
    bad(lambda: vmamba.extract_features(picture, weights=weights, level=2), "level: 2 is not a stage; .* 0 to 1")
    bad(lambda: vmamba.extract_features(picture, weights=weights, level=[]), "level: there is none")
    bad(lambda: vmamba.extract_features(picture, weights=weights, batch=0), "batch: expected at least 1")
    bad(lambda: vmamba.extract_features(picture, model=nn.Conv2d(3, 4, 1)), "no forward_intermediates")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["{images}", "--out", "f.pkl", "--weights", "{weights}"], "--out f.pkl: the file ends in .npz or"),
        (["{images}", "--out", "f.npz", "--weights", "{weights}", "--level", "x"], "--level x: give stages"),
        (["{images}", "--out", "f.npz", "--weights", "{weights}", "--level", "5"], "level: 5 is not a stage"),
        (["{images}/none", "--out", "f.npz", "--weights", "{weights}"], "there is no image file or folder"),
        (["{empty}", "--out", "f.npz", "--weights", "{weights}"], "no image file lies in this folder"),
        (["{images}", "--out", "f.npz"], "model, weights: name a model"),
        (["{images}", "--out", "f.npz", "--lvel", "1"], "Did you mean '--level'"),
        (["{images}", "--out", "{weights}/f.npz", "--weights", "{weights}"], "cannot be written"),
    ],
)
def test_bad_input_of_the_command(argv, words, weights, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert features.main([w.format(images=images, weights=weights, empty=tmp_path / "empty") for w in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not (tmp_path / "f.npz").exists()


def test_gradients_point_where_the_network_looks():
    class Corner(nn.Module):
        feature_info = (None,)

        def forward(self, x):
            return torch.stack([x[:, :, :4, :4].sum((1, 2, 3)), -x[:, :, 8:].sum((1, 2, 3))], 1)

        def forward_intermediates(self, x, indices, intermediates_only):
            return [nn.functional.avg_pool2d(x, 3, 1, 1)]

    x = torch.ones(1, 3, 16, 16)
    field = class_gradient(Corner(), x)
    assert field[:4, :4].eq(1).all() and field.sum() == 16
    assert class_gradient(Corner(), x, 1)[8:].eq(1).all()
    assert receptive_field(Corner(), x).nonzero().tolist() == [[i, j] for i in (7, 8, 9) for j in (7, 8, 9)]
    picture = overlay(Image.new("RGB", (32, 32), "white"), field)
    assert picture.size == (16, 16) and picture.getpixel((0, 0))[0] == 255 and picture.getpixel((9, 9))[0] < 130


def brought_by(imported: str, before: str) -> set[str]:
    """The modules that an import brings into a fresh process, after that of `before`."""
    code = f"import sys, {before}; before = set(sys.modules); import {imported}; print(*set(sys.modules) - before)"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": ""}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(answer.stdout.split())


def test_importing_vmamba_is_light():
    assert brought_by("vmamba", "torch") == {"vmamba"}


def test_the_operators_bring_no_compiler_and_no_library_of_models():
    heavy = {"triton", "torch._dynamo", "torch._inductor", "timm", "torchvision", "mmengine"}
    brought = brought_by("vmamba_kernels", "torch")
    assert "vmamba_kernels.ss2d" in brought and not heavy & brought


def test_the_time_of_an_import_is_that_of_a_fresh_process(tmp_path, monkeypatch):
    (tmp_path / "slow_one.py").write_text("import mmengine, time\ntime.sleep(0.2)\n")
    (tmp_path / "mmengine.py").touch()
    (tmp_path / "first.py").write_text("import time\ntime.sleep(0.2)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (slow, loaded), (fast, nothing) = (measured(name, "first", rounds=1) for name in ("slow_one", "first"))
    assert fast < 0.2 <= slow and loaded == ["mmengine"] and nothing == []
