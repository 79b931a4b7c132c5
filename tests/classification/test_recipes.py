"""The recipes under configs/classification build the models they name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classification.arguments import parse
from classification.checks import ignored_settings
from classification.config import load_config
from classification.sources import DATASETS
from vmamba.errors import UserError
from vmamba.models.from_config import model_from_config, vssm_arguments

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "classification"
# file: (MODEL.NAME, parameters, drop path)
PUBLISHED = {
    "vmambav0_tiny_224": ("vssm_tiny", 22_893_448, 0.2),
    "vmambav0_small_224": ("vssm_small", 44_417_416, 0.3),
    "vmambav0_base_224": ("vssm_base", 76_254_056, 0.5),
    "vmambav2_tiny_224": ("vssm1_tiny_0230", 30_705_832, 0.2),
    "vmambav2_small_224": ("vssm1_small_0229", 50_147_752, 0.3),
    "vmambav2_base_224": ("vssm1_base_0229", 88_557_800, 0.6),
    "vmambav2v_tiny_224": ("vssm1_tiny_0230s", 30_249_064, 0.2),
    "vmambav2v_small_224": ("vssm1_small_0229s", 49_012_840, 0.3),
    "vmambav2v_base_224": ("vssm1_base_0229s", 86_614_504, 0.5),
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_recipe_builds_the_published_model(recipe):
    name, parameters, drop_path = PUBLISHED[recipe]
    config, stated = parse(["--cfg", str(RECIPES / f"{recipe}.yaml")])
    assert config.MODEL.NAME == name and vssm_arguments(config)["drop_path_rate"] == drop_path
    model = model_from_config(config, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(key.startswith("MODEL.") for key in stated), "a published recipe changes the model alone"
    assert ignored_settings(config, stated) == []


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_sound(path):
    config, stated = parse(["--cfg", str(path)])
    assert ignored_settings(config, stated) == [] and config.DATA.DATASET in DATASETS
    assert path.stem in PUBLISHED or config.MODEL.NAME == path.stem


@pytest.mark.parametrize("name", ["vmamba_digits", "vmamba_fashion_mnist"])
def test_small_recipes_are_small_and_run(name):
    config, _ = parse(["--cfg", str(RECIPES / f"{name}.yaml")])
    config.MODEL.NUM_CLASSES = 10
    model = model_from_config(config)
    assert 50_000 < sum(p.numel() for p in model.parameters()) < 1_500_000
    size = config.DATA.IMG_SIZE
    assert model(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_every_vssm_key_reaches_the_constructor():
    config, _ = load_config()
    keys = set(config.MODEL.VSSM) - {"SSM_RANK_RATIO"}
    arguments = vssm_arguments(config)
    assert len(arguments) == len(keys) + 5 and arguments["downsample_version"] == "v2" and arguments["dims"] == 96


def test_timm_models_and_ours_by_name():
    opts = ["MODEL.TYPE", "timm", "MODEL.NUM_CLASSES", "7"]
    config, _ = load_config(opts=[*opts, "MODEL.NAME", "vmamba_tiny_s1l8"])
    model = model_from_config(config, device="meta")
    assert type(model).__name__ == "VSSM" and model.num_classes == 7
    config, _ = load_config(
        opts=[*opts, "MODEL.NAME", "test_vit", "MODEL.TIMM.in_chans", "1", "TRAIN.USE_CHECKPOINT", "True"]
    )
    model = model_from_config(config)
    assert model(torch.randn(1, 1, 160, 160)).shape == (1, 7) and model.grad_checkpointing


def test_unknown_model_type_and_argument():
    config, _ = load_config()
    config.MODEL.TYPE = "vsm"
    with pytest.raises(UserError, match="MODEL.TYPE 'vsm' is unknown; it is one of vssm, timm. Did you mean 'vssm'?"):
        model_from_config(config)
    config.MODEL.TYPE = "vssm"
    with pytest.raises(UserError, match="MODEL.VSSM: .*mlp_ration.*mlp_ratio"):
        model_from_config(config, mlp_ration=3)
