"""The recipes of Vim and FastVim: the published figures, the published networks, and small runs of them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from yacs.config import CfgNode

from classification.arguments import parse
from classification.checks import ignored_settings
from classification.labels import LABELS
from classification.optim import build_optimizer, learning_rate_scale, parameter_groups
from classification.reconstruction import RECONSTRUCTION
from classification.schedule import build_schedule, present_rate
from classification.world import World
from tests.classification.runs import run_ranks
from vmamba.models import FastVim, Vim
from vmamba.models.from_config import is_autoencoder, model_from_config
from vmamba.models.head_norm import NormedLinear

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PROCESSES = 8
# What every published recipe has, unless it says otherwise; the rates are those in effect.
COMMON: dict[str, Any] = dict(
    size=224, images=1024, epochs=300, warmup=5, first=1e-6, last=1e-5, decay=0.05, rule="published", clip=0.0,
    mixup=0.8, cutmix=1.0, smoothing=0.1, policy="rand-m9-mstd0.5-inc1", erase=0.25, repeats=1, scale=(0.08, 1.0),
    optimizer="adamw", betas=(0.9, 0.999), layers=1.0, together=1, average=None, crop=0.875, probe=False,
)  # fmt: skip
VIM = dict(repeats=3, average=0.99996, decay=0.1, rate=1e-3, drop=0.0)
FINER = VIM | dict(epochs=30, rate=1e-5, first=1e-5, decay=1e-8)
FASTVIM = dict(average=0.9999, rate=2e-3, drop=0.05, rule="shape")
LABELLESS = dict(mixup=0.0, cutmix=0.0, smoothing=0.0, policy="none", erase=0.0, first=0.0, last=0.0)
MAE = LABELLESS | dict(images=4096, epochs=1600, warmup=40, rate=2.4e-3, betas=(0.9, 0.95), rule="all")
MAE |= dict(scale=(0.2, 1.0), drop=0.0)
TUNED = dict(epochs=100, rate=2e-3, first=0.0, layers=0.65, together=2, drop=0.3)
TUNED_LARGE = TUNED | dict(epochs=50, rate=4e-3, layers=0.75)
PROBE = LABELLESS | dict(images=4096, epochs=90, warmup=10, rate=1.6, optimizer="sgd", decay=0.0, drop=0.0, probe=True)
# file: (parameters, figures)
PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "classification/vim_tiny": (7_148_008, VIM),
    "classification/vim_small": (25_796_584, VIM | dict(images=512, decay=0.05, drop=0.05)),
    "classification/vim_tiny_stride8": (7_250_344, FINER),
    "classification/vim_small_stride8": (26_001_256, FINER),
    "classification/vim_base": (97_598_440, FASTVIM | dict(drop=0.4)),
    "classification/vim_ln_base": (97_672_168, FASTVIM | dict(drop=0.4)),
    "classification/fastvim_tiny": (7_166_056, FASTVIM),
    "classification/fastvim_small": (25_832_680, FASTVIM),
    "classification/fastvim_base": (97_670_632, FASTVIM | dict(drop=0.4)),
    "pretraining/fastmaskvim_base": (101_428_992, MAE),
    "pretraining/fastmaskvim_large": (343_862_528, MAE),
    "pretraining/fastmaskvim_huge": (705_817_164, MAE),
    "pretraining/vim_mae_base": (101_431_040, MAE),
    "pretraining/vim_mae_large": (343_865_088, MAE),
    "pretraining/finetune_vim_ln_base": (97_672_168, TUNED),
    "pretraining/finetune_vim_ln_large": (340_231_144, TUNED_LARGE),
    "pretraining/finetune_fastvim_base": (97_670_632, TUNED),
    "pretraining/finetune_fastvim_large": (340_229_096, TUNED_LARGE),
    "pretraining/finetune_fastvim_huge": (702_370_280, TUNED_LARGE),
    # 768 more rows of the position embedding
    "pretraining/finetune_fastvim_huge_448": (
        702_370_280 + 768 * 1280,
        TUNED_LARGE | dict(size=448, clip=3.0, crop=1.0),
    ),
    "pretraining/probe_vim_ln_large": (340_231_144, PROBE),
    "pretraining/probe_fastvim_large": (340_229_096, PROBE),
}
SMALL = [
    "classification/vim_digits",
    "classification/fastvim_digits",
    "pretraining/fastmaskvim_fashion_mnist",
    "pretraining/finetune_fastvim_fashion_mnist",
]


def read(recipe: str, *words: str) -> tuple[CfgNode, set[str]]:
    config, stated = parse(["--cfg", str(CONFIGS / f"{recipe}.yaml"), *words])
    (RECONSTRUCTION if is_autoencoder(config) else LABELS).check(config, stated)
    return config, stated


def figures(config: CfgNode) -> dict[str, Any]:
    """What a configuration says, in the words of `COMMON`, for 8 processes."""
    train, aug, scale = config.TRAIN, config.AUG, learning_rate_scale(config, World(0, PROCESSES))
    assert not config.AMP_ENABLE and train.LR_SCHEDULER.NAME == "cosine" and config.SEED == 0
    return dict(
        size=config.DATA.IMG_SIZE, images=config.DATA.BATCH_SIZE * PROCESSES * train.ACCUMULATION_STEPS,
        epochs=train.EPOCHS, warmup=train.WARMUP_EPOCHS, first=train.WARMUP_LR * scale, last=train.MIN_LR * scale,
        rate=train.BASE_LR * scale, decay=train.WEIGHT_DECAY, rule=train.DECAY_GROUPS, clip=train.CLIP_GRAD,
        mixup=aug.MIXUP, cutmix=aug.CUTMIX, smoothing=config.MODEL.LABEL_SMOOTHING, policy=aug.AUTO_AUGMENT,
        erase=aug.REPROB, repeats=aug.REPEATS, scale=tuple(aug.SCALE), optimizer=train.OPTIMIZER.NAME,
        betas=tuple(train.OPTIMIZER.BETAS), layers=train.LAYER_DECAY, together=train.LAYER_DECAY_BLOCKS,
        average=config.EMA.DECAY if config.EMA.ENABLE else None, crop=config.TEST.CROP_RATIO,
        probe=train.LINEAR_PROBE, drop=config.MODEL.DROP_PATH_RATE,
    )  # fmt: skip


def test_every_recipe_is_asserted_here() -> None:
    files = {f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/*.yaml")}
    ours = {
        file for file in files if file.startswith(("pretraining/", "classification/vim_", "classification/fastvim_"))
    }
    assert ours == {*PUBLISHED, *SMALL}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_has_the_published_figures_and_network(recipe: str) -> None:
    config, stated = read(recipe)
    parameters, expected = PUBLISHED[recipe]
    found = figures(config)
    for name, value in (COMMON | expected).items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name
    assert ignored_settings(config, stated) == [] and config.MODEL.NAME == recipe.partition("/")[2]
    network: Any = model_from_config(config, device="meta")
    assert sum(p.numel() for p in network.parameters()) == parameters
    if is_autoencoder(config):
        assert network.mask_ratio == 0.75 and network.norm_pix_loss and len(network.decoder_blocks) == 2
    else:
        assert network.layers[-1].drop_path.drop_prob == config.MODEL.DROP_PATH_RATE
        after_masking = recipe.startswith("pretraining/") and isinstance(network, FastVim)
        assert getattr(network.layers[0].mixer, "scaling_factor", 1.0) == (0.25 if after_masking else 1.0)
        assert isinstance(network.head, NormedLinear) == expected.get("probe", False)


def rates(config: CfgNode, updates: int = 10) -> list[float]:
    """The rate of every update of a run with so many updates an epoch."""
    optimizer = build_optimizer(config, nn.Linear(3, 2), World(0, PROCESSES))
    schedule = build_schedule(config, optimizer, updates, learning_rate_scale(config, World(0, PROCESSES)))
    found = []
    for number in range(config.TRAIN.EPOCHS * updates):
        schedule.step_update(number)
        found.append(present_rate(optimizer))
    return found


def test_the_finer_fine_tuning_has_one_rate() -> None:
    found = rates(read("classification/vim_tiny_stride8")[0])
    assert len(found) == 300 and found == pytest.approx([1e-5] * 300)


def test_pre_training_warms_up_and_goes_down_to_nothing() -> None:
    found = rates(read("pretraining/fastmaskvim_base")[0])
    assert found[0] == 0 and found[200] == pytest.approx(1.2e-3) and found[400] == pytest.approx(2.4e-3)
    assert found[400 + 7800] == pytest.approx(1.2e-3) and found[-1] < 1e-8
    vim = rates(read("classification/vim_tiny")[0])
    assert vim[0] == pytest.approx(1e-6) and max(vim) < 1e-3, "the cosine of Vim runs from the first epoch"


# what the figures do


def small_vim(**more: Any) -> Vim:
    return Vim(**{**dict(img_size=16, patch_size=4, depth=4, embed_dim=16, num_classes=5), **more})


def test_two_blocks_share_a_step_of_the_layer_wise_rates() -> None:
    network = small_vim()
    groups = parameter_groups(network, 0.05, "published", layer_decay=0.5, together=2)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {name: scale[id(p)] for name, p in network.named_parameters()}
    of_block = [{v for n, v in found.items() if n.startswith(f"layers.{i}.")} for i in range(4)]
    assert of_block == [{0.25}, {0.25}, {0.5}, {0.5}]
    assert found["patch_embed.proj.weight"] == found["pos_embed"] == found["cls_token"] == 0.125
    assert found["head.weight"] == found["norm_f.weight"] == 1.0
    # each block by itself, as before
    groups = parameter_groups(network, 0.05, "published", layer_decay=0.5)
    assert {group["lr_scale"] for group in groups} == {0.5**n for n in range(6)}


def test_who_is_decayed() -> None:
    network = small_vim()
    every = dict(network.named_parameters())

    def free(rule: str) -> set[str]:
        kept = {id(p) for g in parameter_groups(network, 0.05, rule) if g["weight_decay"] == 0 for p in g["params"]}
        return {name for name, p in every.items() if id(p) in kept}

    assert free("all") == set()
    flat = {name for name, p in every.items() if p.ndim <= 1}
    assert free("shape") == flat and "layers.0.mixer.A_log" not in flat
    assert free("published") == flat | {"pos_embed", "cls_token"}


# small runs


def small_run(name: str) -> list[str]:
    """A run of a digits recipe that takes seconds."""
    words = ["--cfg", str(CONFIGS / "classification" / f"{name}.yaml"), "--epochs", "1", "--warmup-epochs", "0"]
    shapes = ["MODEL.TIMM.embed_dim", "16", "MODEL.TIMM.depth", "2", "MODEL.TIMM.patch_size", "4"]
    return [*words, "--batch-size", "256", "--no-report", "--opts", "TENSORBOARD", "False", *shapes]


@pytest.mark.parametrize("name", ["vim_digits", "fastvim_digits"])
def test_the_small_recipes_run_and_published_files_are_evaluated(name: str, run_main, tmp_path: Path) -> None:
    words = small_run(name)
    code, output, errors = run_main(*words)
    assert code == 0 and "best accuracy" in output, errors
    config, _ = parse(words)
    config.MODEL.NUM_CLASSES = 10
    network = model_from_config(config)
    assert isinstance(network, FastVim if name == "fastvim_digits" else Vim) and network.img_size == (16, 16)
    state = network.state_dict()
    if name == "vim_digits":
        file: dict[str, Any] = {"model": state, "optimizer": {}, "lr_scheduler": {}, "epoch": 299, "scaler": {}}
        file["args"] = Namespace(model=config.MODEL.ARCH, lr=5e-4)
        average = {"model_ema": {key: value * 1.01 for key, value in state.items()}}
    else:
        file = {"state_dict": {f"backbone.{key}": value for key, value in state.items()}, "epoch": 299}
        average = {"state_dict_ema": {key: value * 1.01 for key, value in state.items()}}
    for extra in ({}, average):
        torch.save({**file, **extra}, tmp_path / "published.pth")
        flag = "--resume" if extra else "--pretrained"
        code, output, errors = run_main(*words, "MODEL.TIMM.depth", "2", flag, tmp_path / "published.pth", "--eval")
        assert code == 0, errors
        assert "Accuracy of the network on the 360 test images" in output
        assert "Accuracy of the network ema on the 360 test images" in output


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_is_small(name: str) -> None:
    config, stated = read(name)
    config.MODEL.NUM_CLASSES = 10
    assert ignored_settings(config, stated) == [] and config.MODEL.NAME == name.partition("/")[2]
    assert 40_000 < sum(p.numel() for p in model_from_config(config, device="meta").parameters()) < 1_000_000


@pytest.mark.parametrize("name", [pytest.param("vim_digits", marks=pytest.mark.slow), "fastvim_digits"])
def test_two_processes_train_together(name: str, tmp_path: Path) -> None:
    codes, output = run_ranks(tmp_path / "ranks", [*small_run(name), "--output", tmp_path / "out"], 2)
    assert codes == [0, 0] and "2 process(es) on cpu" in output and "best accuracy" in output, output
