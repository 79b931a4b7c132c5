"""Grad-CAM of a network whose gradients are known; every layout of features; bad words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from torch import nn

from analyze import activation
from analyze.stage_maps import StageMap, stage_maps
from vmamba.models import FastVim, Vim
from vmamba.models.vssm import VSSM


class Linear(nn.Module):
    """One stage of two channels, the second twice the first; class k scores w_k . mean of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(1, 2, 1, bias=False)
        self.stage.weight.data = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
        self.feature_info = [dict(num_chs=2, module="stage")]

    def forward_intermediates(self, x, intermediates_only):
        return [self.stage(x)]

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))


def test_grad_cam_of_a_linear_network():
    x = torch.tensor([[1.0, 2.0, -4.0], [0.0, 8.0, 1.0]])[None, None]
    (stage,), chosen = stage_maps(Linear(), x)
    assert chosen == 0
    assert torch.allclose(stage.gradient, torch.tensor([3.0 / 6, 0.0])[:, None, None].expand(2, 2, 3))
    assert torch.allclose(stage.grad_cam(), x[0, 0].relu() / 8)
    assert torch.allclose(stage.strength(), x[0, 0].abs() / 8)
    (other,), chosen = stage_maps(Linear(), x, 1)
    assert chosen == 1 and torch.allclose(other.grad_cam(), (-x[0, 0]).relu() / 4)
    like = stage.likeness((0.9, 0.5))  # the position (1, 1)
    assert torch.allclose(like, x[0, 0].sign())
    with pytest.raises(ValueError, match="--class 2"):
        stage_maps(Linear(), x, 2)


SMALL = dict(num_classes=3)
TOKENS = dict(img_size=(24, 40), patch_size=8, depth=2, embed_dim=16, d_state=2, rms_norm=False, **SMALL)
NETWORKS = {
    "channel last": lambda: VSSM(depths=(1, 1), dims=8, **SMALL),
    "channel first": lambda: VSSM(depths=(1, 1), dims=8, norm_layer="ln2d", **SMALL),
    "token in the middle": lambda: Vim(**TOKENS),
    "pooled by columns": lambda: FastVim(scanpath_type="colwise", **TOKENS),
    "timm's convolutions": lambda: timm.create_model("test_resnet", **SMALL),
    "timm's transformer": lambda: timm.create_model("test_vit", img_size=(32, 48), **SMALL),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_features_are_the_stages_own(kind):
    """They are those that the network gives by itself, and the gradient changes the score as it says."""
    torch.manual_seed(0)
    network = NETWORKS[kind]().eval()
    x = torch.randn(1, 3, *((32, 48) if "timm" in kind else (24, 40)))
    maps, chosen = stage_maps(network, x)
    with torch.no_grad():
        wanted = network.forward_intermediates(x, intermediates_only=True)
        assert chosen == int(network(x).argmax())
    assert len(maps) == len(wanted)
    for stage, own in zip(maps, wanted, strict=True):
        assert torch.allclose(stage.features, own[0], atol=1e-5), stage.name
        # A score that is read from the class token has no gradient at the last block's other tokens.
        read = stage is not maps[-1] or kind not in ("token in the middle", "timm's transformer")
        assert stage.gradient.shape == stage.features.shape and bool(stage.gradient.any()) == read


def test_evenly_taken_stages():
    maps = [StageMap(str(i), torch.ones(1), torch.ones(1)) for i in range(24)]
    assert [stage.name for stage in activation.shown_stages(maps)] == ["5", "11", "17", "23"]


def test_the_command(tmp_path, capsys, small_weights):
    argv = ["--weights", str(small_weights), "--size", "32x48", "--count", "1", "--out", str(tmp_path)]
    assert activation.main([*argv, "--query", "0,1", "--class", "2"]) == 0
    about = json.loads((tmp_path / "activation.json").read_text())
    assert [row["class"] for row in about["tables"]["Classes"]] == ["c"]
    arrays = np.load(tmp_path / "activation.npz")
    assert arrays["astronaut/pixels"].shape == (32, 48)
    assert np.isclose(arrays["astronaut/layers.1.blocks likeness"][0, -1], 1)
    assert (tmp_path / "activation.png").stat().st_size > 5000 and "class 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--class", "5"], "--class 5: the model tells the classes 0 to 4 apart"),
        (["--query", "class"], "--query class: give a point"),
        (["--query", "middle"], "--query middle: give Y,X"),
    ],
)
def test_bad_words(tmp_path, monkeypatch, capsys, small_weights, argv, words):
    monkeypatch.chdir(tmp_path)
    assert activation.main(["--weights", str(small_weights), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
