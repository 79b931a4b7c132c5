"""A training checkpoint of the published trainer: a CfgNode object inside, and used without yacs and without pickle."""

from __future__ import annotations

import sys

import pytest
import torch

from classification.defaults import defaults
from vmamba.models.from_config import model_from_config
from vmamba.predict import Predictor
from vmamba.weights import load_checkpoint


@pytest.fixture
def official(tmp_path):
    """The entries of the published trainer's files, its misspelt one among them, and the configuration."""
    config = defaults()
    config.merge_from_list(["MODEL.NUM_CLASSES", 5, "MODEL.VSSM.DEPTHS", [1, 1], "MODEL.VSSM.EMBED_DIM", 8])
    config.freeze()
    model = model_from_config(config)
    optimizer = torch.optim.AdamW(model.parameters())
    payload = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [1e-3], "warmup_t": 20},
        "max_accuracy": 71.5,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "epoch": 3,
        "config": config,
        "model_ema": {key: value + 1 for key, value in model.state_dict().items()},
        "max_accuray_ema": 72.5,
    }
    path = tmp_path / "ckpt_epoch_3.pth"
    torch.save(payload, path)
    return path, payload


def test_every_value_is_equal(official, monkeypatch):
    path, payload = official
    for name in ("yacs", "yacs.config"):
        monkeypatch.setitem(sys.modules, name, None)
    loaded = load_checkpoint(path)
    assert loaded.keys() == payload.keys()
    assert loaded["config"] == payload["config"] and type(loaded["config"]["MODEL"]["VSSM"]) is dict
    for name in ("lr_scheduler", "max_accuracy", "scaler", "epoch", "max_accuray_ema"):
        assert loaded[name] == payload[name]
    assert loaded["optimizer"]["param_groups"] == payload["optimizer"]["param_groups"]
    for name in ("model", "model_ema"):
        assert loaded[name].keys() == payload[name].keys()
        assert all(torch.equal(loaded[name][key], value) for key, value in payload[name].items())


def test_it_predicts_from_its_own_configuration(official):
    path, payload = official
    predictor = Predictor(path, device="cpu")
    ours = predictor.model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in payload["model_ema"].items())
