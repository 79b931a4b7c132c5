"""Masked pre-training through the trainer: a run, its pictures, its resume, and what fine-tunes from it."""

from __future__ import annotations

import csv
import functools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import classification.train
from classification.mae import main as mae_main
from classification.main import main, take_scores
from classification.optim import parameter_groups
from classification.parallel import blocks_of
from classification.progress import Progress
from tests.classification.conftest import write_config
from tests.classification.runs import run_ranks
from tests.classification.same_end import differences
from vmamba.errors import UserError, exit_on_user_error
from vmamba.models import FastMaskVim
from vmamba.weights import load_checkpoint

TINY: dict[str, Any] = dict(in_chans=1, patch_size=2, embed_dim=16, depth=2)


def mae_config(folder: Path, **changes: Any) -> Path:
    """The configuration of a tiny autoencoder on the digits."""
    decoder = dict(decoder_embed_dim=8, decoder_depth=1)
    off: dict[str, Any] = dict(AUG__MIXUP=0.0, AUG__CUTMIX=0.0, AUG__REPROB=0.0, MODEL__LABEL_SMOOTHING=0.0)
    model: dict[str, Any] = dict(MODEL__TYPE="timm", MODEL__ARCH="fastmaskvim_base", MODEL__TIMM=TINY | decoder)
    model |= dict(MODEL__DROP_PATH_RATE=0.0, TRAIN__DECAY_GROUPS="all", TRAIN__BASE_LR=1e-2, REPORT=True)
    return write_config(folder, **{**off, **model, **changes})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> tuple[Path, Path]:
    """A finished run of 2 epochs: (configuration, run folder)."""
    folder = tmp_path_factory.mktemp("mae")
    config = mae_config(folder)
    assert mae_main(["--cfg", str(config), "--output", str(folder / "out")]) == 0
    return config, folder / "out" / "tiny" / "default"


def test_a_run_learns_and_shows_what_it_makes_of_hidden_patches(pretrained) -> None:
    _, run = pretrained
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    losses = [float(row["val_loss"]) for row in rows]
    assert len(losses) == 2 and losses[1] < losses[0] < 1.2 and not rows[0]["acc1"]
    best = load_checkpoint(run / "best.pth")
    assert best["epoch"] == 1 and best["weights"] == "model"
    with Image.open(run / "reconstruction.png") as picture:
        assert picture.width > 2 * picture.height > 600
    text = (run / "log_rank0.txt").read_text()
    assert "of the variance explained" in text and "Max explained variance:" in text and "fine-tune: " in text
    assert (run / "curves.png").exists() and not (run / "README.md").exists()


def test_an_evaluation_asks_the_same_as_the_run(pretrained, capsys) -> None:
    config, run = pretrained
    last = list(csv.DictReader((run / "metrics.csv").open()))[-1]
    picture = (run / "reconstruction.png").read_bytes()
    words = ["--cfg", str(config), "--output", str(run.parents[1]), "--eval"]
    assert mae_main([*words, "--pretrained", str(run / "last.pth")]) == 0
    text = capsys.readouterr().out
    for label, column in (("", "val_loss"), (" ema", "ema_val_loss")):
        assert f"Loss of the network{label} on the 360 test images: {float(last[column]):.4f}" in text
    assert (run / "reconstruction_last.png").exists() and (run / "reconstruction.png").read_bytes() == picture


def test_an_interrupted_run_ends_with_the_same_bits(pretrained, tmp_path, monkeypatch) -> None:
    config, run = pretrained
    words = ["--cfg", str(config), "--output", str(tmp_path), "--opts", "SAVE_STEPS", "3"]
    update, numbers = classification.train.update, iter(range(10**6))

    def breaking(trainer, *args):
        if next(numbers) == 4:
            raise KeyboardInterrupt
        return update(trainer, *args)

    with monkeypatch.context() as broken:
        broken.setattr("classification.train.update", breaking)
        assert mae_main(words) == 130
    assert (tmp_path / "tiny" / "default" / "ckpt_epoch_0_step_3.pth").exists()
    assert mae_main(words) == 0
    assert differences(run, tmp_path / "tiny" / "default") == []


def test_the_encoder_fine_tunes_with_layer_wise_rates_and_is_probed(pretrained, tmp_path, capsys) -> None:
    _, run = pretrained
    weights = ["--finetune", str(run / "best.pth"), "--output", str(tmp_path / "out"), "--epochs", "1"]
    tuned = TINY | dict(scaling_factor=0.25)
    config = write_config(
        tmp_path, MODEL__TYPE="timm", MODEL__ARCH="fastvim_base", MODEL__TIMM=tuned, TRAIN__LAYER_DECAY_BLOCKS=2
    )
    assert main(["--cfg", str(config), *weights, "--layer-decay", "0.65"]) == 0
    assert "2 head dropped" in capsys.readouterr().out
    assert main(["--cfg", str(config), *weights, "--tag", "probe", "--linear-probe", "--head-norm"]) == 0
    source = load_checkpoint(run / "best.pth")["model"]
    probed = load_checkpoint(tmp_path / "out" / "tiny" / "probe" / "best.pth")["model"]
    shared = [key for key in probed if not key.startswith("head.")]
    assert len(shared) > 20 and all(torch.equal(probed[key], source[key]) for key in shared)
    tuned_state = load_checkpoint(tmp_path / "out" / "tiny" / "default" / "best.pth")["model"]
    assert not torch.equal(tuned_state["layers.0.mixer.in_proj.weight"], source["layers.0.mixer.in_proj.weight"])


def test_two_processes_pre_train_together(tmp_path) -> None:
    config = mae_config(tmp_path, TRAIN__EPOCHS=1, TRAIN__WARMUP_EPOCHS=0, REPORT=False, EMA__ENABLE=False)
    words = ["--cfg", str(config), "--output", str(tmp_path / "out"), "--device", "cpu"]
    codes, output = run_ranks(tmp_path / "ranks", words, 2, {"do": "mae"})
    assert codes == [0, 0] and "on the 360 test images" in output, output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(AUG__MIXUP=0.8), "AUG.MIXUP 0.8: an autoencoder has no labels and no head; set it to 0"),
        (dict(MODEL__DROP_PATH_RATE=0.1), "MODEL.DROP_PATH_RATE 0.1: an autoencoder"),
        (dict(TRAIN__LOSS__NAME="bce"), "TRAIN.LOSS.NAME bce: an autoencoder has no labels .* set it to cross_entropy"),
        (dict(MODEL__TIMM=TINY | dict(img_size=16)), "MODEL.TIMM.img_size 16: an autoencoder sees .* leave it out"),
        (dict(TRAIN__FORWARD={"noise": 1}), "TRAIN.FORWARD.noise: of an autoencoder's forward only mask_ratio can"),
        (
            dict(MODEL__ARCH="fastmaskvim_bse"),
            "'fastmaskvim_bse' .* is no masked autoencoder.*Did you mean 'fastmaskvim_b",
        ),
    ],
)
def test_settings_of_labels_are_refused(changes, said, tmp_path, capsys) -> None:
    config = mae_config(tmp_path, **changes)
    assert exit_on_user_error(mae_main)(["--cfg", str(config), "--output", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    with pytest.raises(UserError, match=said):
        raise UserError(line)
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_not_pre_trained_nor_an_autoencoder_classified(tmp_path, capsys) -> None:
    config = mae_config(tmp_path)
    assert exit_on_user_error(main)(["--cfg", str(config), "--output", str(tmp_path / "out")]) == 2
    assert (
        "fastmaskvim_base learns without labels; train it with: python -m classification.mae" in capsys.readouterr().err
    )


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_pictures_put_predictions_into_the_hidden_places(columns: bool, normed: bool) -> None:
    torch.manual_seed(0)
    scan = dict(scanpath_type="colwise" if columns else "rowwise", aligned_targets=True, norm_pix_loss=normed)
    model = FastMaskVim(
        img_size=(8, 12), patch_size=4, depth=2, embed_dim=16, decoder_embed_dim=8, decoder_depth=1, **scan
    )
    images = torch.randn(2, 3, 8, 12)
    noise = torch.tensor([[0.0, 1, 1, 1, 1, 1], [1.0, 1, 0, 1, 1, 1]])
    loss, predicted, mask = model(images, noise, mask_ratio=0.8)
    given, answer = model.pictures(images, predicted, mask)
    # token 2 is the last of the first row, or the first of the second column
    top, left = (0, 4) if columns else (0, 8)
    kept = images[1, :, top : top + 4, left : left + 4]
    assert torch.equal(given[1, :, top : top + 4, left : left + 4], kept) and int((given[1] != 0).sum()) == kept.numel()
    assert torch.equal(answer[0, :, :4, :4], images[0, :, :4, :4]) and (answer[0, :, 4:] != images[0, :, 4:]).all()
    # a perfect prediction is the image itself, and chance is the loss of the means
    target = model.patchify(images)
    variance, mean = torch.var_mean(target, dim=2, keepdim=True)
    perfect = (target - mean) / (variance + 1e-6).sqrt() if normed else target
    perfect = perfect.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2) if columns else perfect
    torch.testing.assert_close(model.pictures(images, perfect, mask)[1], images)
    means = model.targets(images).mean(2, keepdim=True)
    chance = float(model.loss(images, means, torch.ones_like(mask)))
    assert chance == pytest.approx(47 / 48 if normed else float((target - mean).square().mean()), rel=1e-4)


def test_the_best_of_negative_scores_is_kept() -> None:
    progress, logger = Progress(), logging.getLogger("scores")
    kept = [take_scores(progress, epoch, [score], "merit", logger) for epoch, score in enumerate([-20.0, -30.0, -10.0])]
    assert kept == [True, False, True] and progress.best == -10.0


def test_arguments_of_the_forward_reach_the_autoencoder(tmp_path, monkeypatch) -> None:
    seen, forward = [], FastMaskVim.forward

    @functools.wraps(forward)
    def noting(self, *args, **options):
        seen.append(options)
        return forward(self, *args, **options)

    monkeypatch.setattr(FastMaskVim, "forward", noting)
    config = mae_config(tmp_path, TRAIN__EPOCHS=1, TRAIN__FORWARD={"mask_ratio": 0.5})
    assert mae_main(["--cfg", str(config), "--output", str(tmp_path / "out")]) == 0
    assert {"mask_ratio": 0.5} in seen


def test_the_layers_of_an_autoencoder() -> None:
    model = FastMaskVim(img_size=16, patch_size=4, depth=4, embed_dim=16, decoder_embed_dim=8, decoder_depth=1)
    assert blocks_of(model) == list(model.layers), "which are sharded one by one"
    groups = parameter_groups(model, 0.0, "all", layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {name: scale[id(p)] for name, p in model.named_parameters() if id(p) in scale}
    assert found["patch_embed.proj.weight"] == 0.5**5 and found["layers.0.norm.weight"] == 0.5**4
    assert found["layers.3.norm.weight"] == 0.5
    last = ("norm_f.weight", "mask_token", "decoder_embed.weight", "decoder_blocks.0.norm.weight")
    assert {found[name] for name in last} == {1.0}
