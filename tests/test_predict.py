"""Prediction from a checkpoint: the trainer's pixels, and one line for everything that can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import vmamba.doctor
from classification.files import FolderSource
from vmamba import predict
from vmamba.devices import choose_device
from vmamba.errors import UserError
from vmamba.models.from_config import model_from_config
from vmamba.preprocess import read_image
from vmamba.weights import CheckpointError, save_checkpoint

VSSM = {"IN_CHANS": 3, "DEPTHS": [1, 1], "EMBED_DIM": 8, "SSM_D_STATE": 1, "SSM_FORWARDTYPE": "v05_noz"}
DATA = {"IMG_SIZE": 32, "MEAN": [0.5, 0.5, 0.5], "STD": [0.5, 0.5, 0.5], "INTERPOLATION": "bicubic"}
MODEL = {"TYPE": "vssm", "NAME": "small", "NUM_CLASSES": 3, "DROP_PATH_RATE": 0.0, "VSSM": VSSM}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


def checkpoint(path, **changes):
    config = {"MODEL": MODEL, "DATA": DATA}
    payload = {"model": model_from_config(config).state_dict(), "config": config, "class_names": ["ant", "bee", "cat"]}
    save_checkpoint(path, payload | changes)
    return path


@pytest.fixture
def weights(tmp_path):
    return checkpoint(tmp_path / "best.pth")


@pytest.fixture
def rotated(tmp_path):
    """A JPEG stored on its side, 40 wide and 24 high, whose EXIF orientation says to turn it."""
    folder = tmp_path / "train" / "ant"
    folder.mkdir(parents=True)
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "a.jpg", exif=exif, quality=95)
    return folder / "a.jpg"


def one_line(capsys, argv, main=predict.main) -> str:
    assert main([str(word) for word in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_training_and_prediction_see_the_same_upright_pixels(rotated, weights):
    trained = FolderSource(rotated.parents[1]).load(0)
    upright = np.asarray(trained)
    assert upright.shape == (40, 24, 3) and upright[:15].min() > 200 and upright[25:].max() < 50
    predictor = predict.Predictor(weights, "cpu")
    assert torch.equal(predictor.read(rotated), predictor.transform(trained.convert("RGB")))


def test_a_damaged_exif_block_leaves_the_image_as_stored(tmp_path):
    Image.new("RGB", (40, 24)).save(tmp_path / "a.jpg", exif=b"Exif\0\0not a TIFF header at all")
    assert read_image(tmp_path / "a.jpg").size == (40, 24)


def test_an_image_that_cannot_be_read_is_one_line(rotated, weights, capsys):
    for damage in (b"no image", rotated.read_bytes()[:300]):
        rotated.write_bytes(damage)
        assert f"{rotated} cannot be read as an image" in one_line(capsys, [rotated, "--weights", weights])


@pytest.mark.parametrize(
    "names, expected", [(["ant", "bee", "cat"], {"ant", "bee", "cat"}), (["ant"], {"0", "1", "2"})]
)
def test_classes_are_numbered_where_names_are_missing(tmp_path, rotated, names, expected):
    predictor = predict.Predictor(checkpoint(tmp_path / "w.pth", class_names=names), "cpu")
    assert {name for name, _ in next(iter(predictor([rotated])))} == expected


@pytest.mark.parametrize(
    "config, words",
    [
        ({"MODEL": {}}, "lacks 'TYPE'"),
        ({"MODEL": MODEL}, "lacks 'DATA'"),
        ({"MODEL": []}, "holds no configuration"),
        ({"MODEL": MODEL, "DATA": {**DATA, "MEAN": 3}}, "is damaged"),
        ({"MODEL": {**MODEL, "VSSM": {**VSSM, "IN_CHANS": 2}}, "DATA": DATA}, "no image file has 2 channels"),
    ],
)
def test_a_checkpoint_with_a_bad_configuration(tmp_path, config, words):
    path = checkpoint(tmp_path / "w.pth", config=config)
    with pytest.raises(CheckpointError, match=words) as error:
        predict.Predictor(path, "cpu")
    assert str(path) in str(error.value)


def test_an_unknown_device_is_one_line(rotated, weights, capsys):
    assert "--device foo: it is auto, cpu" in one_line(capsys, [rotated, "--weights", weights, "--device", "foo"])
    with pytest.raises(UserError, match="Did you mean 'cuda'"):
        choose_device("cudda")
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_missing_gpu_is_one_line(rotated, weights, device, capsys):
    error = one_line(capsys, [rotated, "--weights", weights, "--device", device])
    assert f"--device {device}: torch sees no GPU here; use --device cpu" in error


def test_the_number_of_a_gpu_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1) and choose_device(None) == torch.device("cuda")
    with pytest.raises(UserError, match="cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_unknown_flags_are_one_line_with_the_nearest(capsys):
    error = one_line(capsys, ["a.jpg", "--wieghts", "w.pth"])
    assert "unknown flag '--wieghts'. Did you mean '--weights'? See python -m vmamba.predict -h" in error
    assert "one of these is required: --model or --weights. See python -m vmamba.predict -h" in one_line(
        capsys, ["a.jpg"]
    )
    error = one_line(capsys, ["--breif"], vmamba.doctor.main)
    assert "unknown flag '--breif'. Did you mean '--brief'? See python -m vmamba.doctor -h" in error
    assert "unknown argument 'now'" in one_line(capsys, ["now"], vmamba.doctor.main)
