"""The rehearsal, and what training steps cost."""

from __future__ import annotations

import re

import pytest

from classification import checkpoint, dry_run
from vmamba.errors import UserError


def test_a_dry_run_prints_the_plan_and_leaves_nothing_behind(tiny_config, run_main, tmp_path):
    config = tiny_config(TRAIN__EPOCHS=20, TRAIN__WARMUP_EPOCHS=2, TRAIN__ACCUMULATION_STEPS=2)
    (tmp_path / "out").mkdir()
    code, output, errors = run_main("--cfg", config, "--dry-run")
    assert code == 0, errors
    assert list((tmp_path / "out").iterdir()) == [] and "Train:" not in output
    text = " ".join(re.sub(r"[│┃]", " ", output).split())
    for line in (
        "dry run: nothing was trained", "vssm/tiny, 10 classes", "8 x 8", "GFLOPs", "1,437 training images, 360 held",
        "20, 3 updates each, 60 in all", "512: 256 in each of 1 processes and 2 steps", "adamw, 2 groups",
        "cosine: epoch 0 5e-07, epoch 2 0.01,", "written and read back; 3 kept", "MB at most so far",
        "1 on cpu, float32",
    ):  # fmt: skip
        assert line in text, line
    last = float(re.findall(r"epoch 19 ([\d.e-]+)", text)[0])
    assert 5e-6 < last < 5e-4
    parameters = re.search(r"([\d,]+), ([\d,]+) of them trained", text)
    assert parameters and parameters[1] == parameters[2]


@pytest.mark.parametrize(
    "more",
    [
        "--linear-probe --head-norm --sched plateau --amp-dtype bfloat16 --loss bce",
        "--compile eager --channels-last --freeze patch_embed --drop 0.1 --optim lamb",
        "--layer-decay 0.7 --clip-mode agc --clip-grad 0.02 --use-checkpoint --accumulation-steps 2",
    ],
)
def test_a_dry_run_of_each_setting(tiny_config, run_main, more):
    code, output, errors = run_main("--cfg", tiny_config(), "--dry-run", *more.split())
    assert code == 0 and "nothing was trained" in output, errors


def test_a_dry_run_meets_what_the_run_would(tiny_config, run_main):
    config = tiny_config()
    assert run_main("--cfg", config, "--dry-run", "--batch-size", 5000)[0] == 2
    code, _, errors = run_main("--cfg", config, "--dry-run", "--lr", "inf")
    assert code == 2 and "the weights are not finite after one update; lower TRAIN.BASE_LR inf" in errors


def test_a_dry_run_needs_a_place_to_write(tiny_config, run_main, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(dry_run.tempfile, "mkdtemp", refuse)
    code, _, errors = run_main("--cfg", tiny_config(), "--dry-run")
    assert code == 2 and "Read-only file system; choose another --output" in errors


def test_a_disk_that_gives_back_something_else_is_named(tiny_config, run_main, monkeypatch):
    def resume(trainer, *_):
        next(trainer.network.parameters()).data.add_(1)

    monkeypatch.setattr(dry_run, "resume", resume)
    code, _, errors = run_main("--cfg", tiny_config(), "--dry-run")
    assert code == 2 and "is not the same after a checkpoint was written and read" in errors

    def full(*_):
        raise UserError("no space left")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    code, _, errors = run_main("--cfg", tiny_config(), "--dry-run")
    assert code == 2 and "no checkpoint can be written: no space left" in errors


def test_training_cost_needs_no_data(tiny_config, run_main):
    config = tiny_config(DATA__DATASET="imagenet")
    code, output, errors = run_main("--cfg", config, "--traincost", "--batch-size", 2)
    assert code == 0, errors
    assert re.search(r"batch_size 2 float32 training \d\S* images/s \d+MB", output)
