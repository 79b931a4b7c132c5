"""A small VMamba, as a configuration and as a checkpoint of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vmamba.models.config_file import read_model_config
from vmamba.models.from_config import model_from_config

CONFIG = """\
DATA: {IMG_SIZE: 32, MEAN: [0.5, 0.5, 0.5], STD: [0.25, 0.25, 0.25]}
MODEL:
  NUM_CLASSES: 5
  VSSM: {EMBED_DIM: 8, DEPTHS: [1, 2], SSM_D_STATE: 2, SSM_FORWARDTYPE: v05_noz, PATCHEMBED: v1, DOWNSAMPLE: v1}
"""


@pytest.fixture(scope="session")
def small_config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory, small_config) -> Path:
    """A checkpoint as the trainer writes it, of weights that no initialisation draws."""
    path = tmp_path_factory.mktemp("weights") / "best.pth"
    config = read_model_config(small_config)
    torch.manual_seed(1)
    model = model_from_config(config)
    state = {k: v + 0.05 * torch.randn_like(v) for k, v in model.state_dict().items()}
    torch.save({"model": state, "config": config, "class_names": list("abcde"), "epoch": 3}, path)
    return path
