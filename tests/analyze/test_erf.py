"""The effective receptive field of networks whose support is known; grids; bad words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from analyze import erf
from analyze.field import contribution, displayed, mean_field, squares, with_scan_order
from vmamba.models.config_file import read_model_config
from vmamba.models.vssm import VSSM


class Stack(nn.Module):
    """Convolutions of positive weights, as a network of one stage for each."""

    def __init__(self, *layers: dict) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, bias=False, **options) for options in layers)
        self.feature_info = [dict(num_chs=3) for _ in layers]
        for layer in self.layers:
            nn.init.constant_(layer.weight, 0.5)

    def forward_intermediates(self, x, indices, intermediates_only):
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return [maps[i] for i in indices]


def support(field: torch.Tensor) -> tuple[list[int], list[int]]:
    """The first and last row and column of what is not zero, which must fill that rectangle."""
    rows, columns = field.nonzero().T
    box = [int(rows.min()), int(rows.max())], [int(columns.min()), int(columns.max())]
    assert len(rows) == (box[0][1] - box[0][0] + 1) * (box[1][1] - box[1][0] + 1)
    return box


def test_the_field_of_convolutions_is_their_support():
    network = Stack(dict(kernel_size=3, padding=1), dict(kernel_size=5, padding=2), dict(kernel_size=3, padding=1))
    x = torch.ones(2, 3, 21, 33)
    for level, reach in ((0, 1), (1, 3), (2, 4), (-1, 4)):
        field = contribution(network, x, level)
        assert support(field) == ([10 - reach, 10 + reach], [16 - reach, 16 + reach])
    dilated = Stack(dict(kernel_size=3, padding=4, dilation=4))
    assert int((contribution(dilated, x) > 0).sum()) == 9


def test_a_stride_and_the_values():
    network = Stack(dict(kernel_size=2, stride=2), dict(kernel_size=3, padding=1))
    field = contribution(network, torch.ones(1, 3, 12, 16))
    # The unit (3, 4) of the second layer sees rows 2..4 and columns 3..5 of the first: pixels 4..9 and 6..11.
    assert support(field) == ([4, 9], [6, 11])
    assert torch.allclose(field[field > 0], torch.full((36,), 9 * 3 * 0.25, dtype=torch.float64))


def test_a_negative_unit_gives_nothing_and_no_number_is_left_out():
    network = Stack(dict(kernel_size=3, padding=1))
    assert not contribution(network, -torch.ones(1, 3, 9, 9)).any()
    images = [torch.ones(1, 3, 9, 9), torch.full((1, 3, 9, 9), float("nan")), 2 * torch.ones(1, 3, 9, 9)]

    def gradient_of(x):
        return x.square() if bool(x.isfinite().all()) else x * float("nan")

    network.layers[0].register_forward_hook(lambda m, a, y: gradient_of(y))
    field = mean_field(network, images)
    assert (field.used, field.skipped) == (2, 1)
    with pytest.raises(ValueError, match="no image gave a finite gradient"):
        mean_field(network, images[1:2])


def test_the_squares():
    field = torch.zeros(8, 12)
    field[4, 6] = 5.0
    field[3:6, 5:8] += 1.0
    found = {s.threshold: (s.side, s.ratio) for s in squares(field, (0.2, 0.43, 0.99))}
    assert found == {0.2: (1, 1 / 96), 0.43: (3, 9 / 96) if 6 / 14 < 0.43 else (1, 1 / 96), 0.99: (3, 9 / 96)}
    (whole,) = squares(torch.ones(8, 12), (1.0,))
    assert (whole.side, whole.ratio) == (13, 1.0)
    (half,) = squares(torch.ones(9, 9), (0.5,))
    assert (half.side, half.ratio) == (7, 49 / 81)
    assert float(displayed(field).max()) == 1.0


def test_scan_orders_change_the_field_and_not_the_weights():
    torch.manual_seed(0)
    network = VSSM(depths=(1,), dims=8, num_classes=0, patchembed_version="v1", ssm_conv=1, ssm_init="v1").eval()
    x = torch.rand(1, 3, 24, 32)
    rows = with_scan_order(network, "unidi")
    below = contribution(rows, x)[16:]
    assert not below.any() and contribution(network, x)[16:].any()
    for mine, other in zip(network.parameters(), rows.parameters(), strict=True):
        assert torch.equal(mine, other)
    for order, words in (("rows_both", "has 2 sequences"), ("diagonal", "is not one of")):
        with pytest.raises(ValueError, match=words):
            with_scan_order(network, order)
    with pytest.raises(ValueError, match="no SS2D"):
        with_scan_order(nn.Linear(1, 1), "cross2d")


def test_the_command(tmp_path, capsys, small_config):
    argv = ["--model", str(small_config), "--compare", "test_resnet", "--size", "48x64", "--count", "2"]
    assert erf.main([*argv, "--out", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "erf.json").read_text())
    rows = about["tables"]["Area ratios"]
    assert [row["model"] for row in rows] == ["small", "test_resnet"] and rows[0]["size"] == "48x64"
    assert all(0 < row["area 0.2"] <= row["area 0.5"] <= row["area 0.99"] <= 1 for row in rows)
    assert "mean over 2 images" in about["method"] and about["method"] in capsys.readouterr().out
    arrays = np.load(tmp_path / "erf.npz")
    assert sorted(arrays) == ["random weights/small", "random weights/test_resnet"]
    assert all(arrays[name].shape == (48, 64) and arrays[name].max() > 0 for name in arrays)
    assert Image.open(tmp_path / "erf.png").width > 200


def test_before_and_after(tmp_path, small_weights):
    argv = ["--weights", str(small_weights), "--before-after", "--count", "1", "--out", str(tmp_path)]
    assert erf.main(argv) == 0
    arrays = np.load(tmp_path / "erf.npz")
    assert sorted(arrays) == ["random weights/best", "trained/best"]
    assert not np.allclose(*(arrays[name] for name in arrays))


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory):
    """A yaml file of a model of timm, and weights for it in a file whose name says "random"."""
    folder = tmp_path_factory.mktemp("random")
    config = folder / "mine.yaml"
    data = "DATA: {IMG_SIZE: 64, MEAN: [0.5, 0.5, 0.5], STD: [0.25, 0.25, 0.25]}"
    config.write_text(f"{data}\nMODEL: {{TYPE: timm, NAME: test_resnet, NUM_CLASSES: 5}}\n")
    torch.manual_seed(2)
    state = timm.create_model("test_resnet", num_classes=5).state_dict()
    torch.save({"model": state, "config": read_model_config(config)}, folder / "random_crops.pth")
    return config, folder / "random_crops.pth"


@pytest.mark.parametrize("named_by", ["yaml", "name twice", "checkpoint"])
def test_before_and_after_of_others(tmp_path, of_timm, named_by):
    """Whatever the command calls the model, its untrained twin is built as it was; a file's name says nothing."""
    config, weights = of_timm
    words = {
        "yaml": ["--model", str(config), "--weights", str(weights)],
        "name twice": ["--model", "test_resnet", "--compare", f"test_resnet={weights}"],
        "checkpoint": ["--weights", str(weights)],
    }
    argv = [*words[named_by], "--size", "64", "--before-after", "--count", "1", "--out", str(tmp_path)]
    assert erf.main(argv) == 0
    arrays = np.load(tmp_path / "erf.npz")
    last = {"yaml": "mine", "name twice": "test_resnet #2", "checkpoint": "random_crops"}[named_by]
    given = "as given" if named_by == "name twice" else "trained"
    assert not np.allclose(arrays[f"random weights/{last}"], arrays[f"{given}/{last}"])
    rows = json.loads((tmp_path / "erf.json").read_text())["tables"]["Area ratios"]
    assert rows[-1]["weights"] == "weights random_crops.pth" and rows[0]["weights"] == "random weights, seed 0"


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--model", "test_resnet", "--before-after"], "all weights are random"),
        (["--model", "test_resnet", "--level", "9"], "level: 9 is not a stage"),
        (["--model", "test_resnet", "--thresholds", "2"], "--thresholds: give parts"),
        (["--model", "test_resnet", "--scan-orders", "cross2d"], "no SS2D mixer"),
    ],
)
def test_bad_words(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    assert erf.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
