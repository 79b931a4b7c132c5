"""Interrupted runs: ended anywhere, continued from the newest good checkpoint, the same weights bit for bit."""

from __future__ import annotations

import signal

import pytest

from tests.classification import soak
from tests.classification.runs import run_ranks
from tests.classification.same_end import differences, states_equal
from vmamba.weights import load_checkpoint, save_checkpoint

RUN = {
    "TRAIN__EPOCHS": 3,
    "TRAIN__ACCUMULATION_STEPS": 2,
    "KEEP_CHECKPOINTS": 0,
    "DATA__BATCH_SIZE": 128,
    "DATA__NUM_WORKERS": 1,
    "AUG__AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",
    "EMA__WARMUP": True,
}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_interrupted_anywhere_ends_with_the_same_bits(tiny_config, tmp_path, processes):
    """RandAugment, erasing, mixup, drop path, accumulation, EMA and loader workers are on.

    Broken inside an epoch by SIGTERM to the last process, in an evaluation by SIGUSR1, inside an epoch by SIGKILL.
    """
    config, last = tiny_config(**RUN), processes - 1
    assert run_ranks(tmp_path, ["--cfg", config, "--output", tmp_path / "whole"], processes)[0] == [0] * processes
    broken = ["--cfg", config, "--output", tmp_path / "broken"]
    folder = tmp_path / "broken" / "tiny" / "default"

    codes, output = run_ranks(
        tmp_path, broken, processes, {"do": "signal", "rank": last, "at": 4, "signals": ["SIGTERM"]}
    )
    assert codes == [143] * processes and "ended by SIGTERM, exit code 143" in output, output
    place = {1: "ckpt_epoch_0_step_10.pth", 2: "ckpt_epoch_1_step_4.pth"}[processes]
    assert (folder / place).exists() and (folder / place).samefile(folder / "last.pth")

    codes, output = run_ranks(tmp_path, broken, processes, {"do": "signal", "rank": last, "signals": ["SIGUSR1"]})
    assert codes == [75] * processes and "resumed" in output, output
    place = {1: "ckpt_epoch_0_step_11.pth", 2: "ckpt_epoch_1_step_5.pth"}[processes]
    assert (folder / place).exists()

    fault = {"do": "signal", "rank": 0, "at": 2, "signals": ["SIGKILL"]}
    saving = [*broken, "--workers", 0, "--opts", "SAVE_STEPS", 2]
    codes, output = run_ranks(tmp_path, saving, processes, fault)
    assert codes == [-9, 1][:processes] and "EPOCH" in output, output
    (folder / ".ckpt_epoch_2.pth.tmp-1").write_bytes(b"left over")

    codes, output = run_ranks(tmp_path, broken, processes)
    assert codes == [0] * processes and "steps into epoch" in output and "Train: [0/3]" not in output, output
    assert not list(folder.glob(".*.tmp-*")) and not list(folder.glob("*.damaged"))
    assert differences(tmp_path / "whole" / "tiny" / "default", folder) == []


def test_three_random_faults_and_the_same_end(capsys):
    """The short form of `make soak`."""
    assert soak.main(["--faults", "3"]) == 0
    assert "3 faults" in capsys.readouterr().out


@pytest.fixture
def three_epochs(finished_copy):
    """A finished run: (configuration file, run folder)."""
    return finished_copy(3)[:2]


def test_a_truncated_newest_checkpoint_is_passed_over_with_one_warning(three_epochs, run_main):
    config, folder = three_epochs
    newest = folder / "ckpt_epoch_2.pth"
    expected = load_checkpoint(newest)["model"]
    newest.write_bytes(newest.read_bytes()[:2000])
    code, output, _ = run_main("--cfg", config)
    warnings = [line for line in output.splitlines() if "WARNING" in line and "damaged" in line]
    assert code == 0 and len(warnings) == 1
    assert "ckpt_epoch_2.pth is damaged" in warnings[0] and "resuming from ckpt_epoch_1.pth" in warnings[0]
    assert "Train: [2/3]" in output and "Train: [1/3]" not in output
    assert states_equal(load_checkpoint(newest)["model"], expected)


def test_when_all_are_damaged_nothing_is_overwritten(three_epochs, run_main):
    config, folder = three_epochs
    for path in folder.glob("ckpt_epoch_*.pth"):
        path.write_bytes(path.read_bytes()[:-500])
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    code, _, errors = run_main("--cfg", config)
    assert code == 2 and "every checkpoint" in errors and "ckpt_epoch_2.pth" in errors and errors.count("\n") == 1
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.pth")}


def test_another_batch_size_continues_at_the_right_epoch_and_rate(three_epochs, run_main):
    config, folder = three_epochs
    (folder / "ckpt_epoch_2.pth").unlink()
    code, output, _ = run_main("--cfg", config, "--batch-size", 64)
    assert code == 0 and "DATA.BATCH_SIZE 256 -> 64" in output
    first = next(line for line in output.splitlines() if "Train: [2/3][0/22]" in line)
    assert "Train: [1/3]" not in output
    # half of the cosine is behind us: (1e-2 + 5e-6) / 2 * 64 / 512
    assert float(first.split(" lr ")[1].split()[0]) == pytest.approx(0.5 * (1e-2 + 5e-6) * 64 / 512, abs=1e-6)


def test_resume_by_name_into_another_folder(three_epochs, run_main, tmp_path):
    config, folder = three_epochs
    code, output, _ = run_main("--cfg", config, "--tag", "other", "--resume", folder / "ckpt_epoch_1.pth")
    assert code == 0 and "Train: [2/3]" in output and "Train: [1/3]" not in output
    _, output, _ = run_main(
        "--cfg", config, "--tag", "other", "--resume", folder / "best.pth", "--pretrained", "x", "--epochs", 4
    )
    assert (
        "MODEL.RESUME has no effect" in output
        and "MODEL.PRETRAINED has no effect" in output
        and "Train: [3/4]" in output
    )
    a, b = (load_checkpoint(tmp_path / "out" / "tiny" / tag / "ckpt_epoch_2.pth") for tag in ("default", "other"))
    assert states_equal(a["model"], b["model"]) and states_equal(a["model_ema"], b["model_ema"])


def test_auto_resume_off_never_mixes_two_runs(three_epochs, run_main):
    config, folder = three_epochs
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    code, output, errors = run_main("--cfg", config, "--opts", "TRAIN.AUTO_RESUME", "False")
    assert code == 2 and "AUTO_RESUME is off, but" in errors and "Train:" not in output
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    for path in folder.glob("ckpt*"):
        path.unlink()
    code, output, _ = run_main("--cfg", config, "--opts", "TRAIN.AUTO_RESUME", "False")
    assert code == 0 and "Train: [0/3]" in output and "resumed" not in output


def test_best_scores_of_model_and_average_are_restored(three_epochs, run_main):
    config, folder = three_epochs
    (folder / "ckpt_epoch_2.pth").unlink()
    payload = load_checkpoint(folder / "ckpt_epoch_1.pth")
    payload["max_accuracy"], payload["max_accuray_ema"] = 98.5, 99.5  # the published spelling
    del payload["max_accuracy_ema"]
    best = (folder / "best.pth").read_bytes()
    save_checkpoint(folder / "ckpt_epoch_1.pth", payload)
    code, output, _ = run_main("--cfg", config)
    assert code == 0 and "Max accuracy: 98.50%" in output and "Max accuracy ema: 99.50%" in output
    assert (folder / "best.pth").read_bytes() == best


def test_weights_without_training_state_cannot_be_resumed(three_epochs, run_main):
    config, folder = three_epochs
    code, _, errors = run_main("--cfg", config, "--tag", "x", "--resume", folder / "best.pth")
    assert code == 2 and "has no 'optimizer'" in errors and "--pretrained" in errors


def test_another_model_or_optimizer_cannot_be_resumed(three_epochs, run_main):
    config, _ = three_epochs
    code, _, errors = run_main("--cfg", config, "--opts", "MODEL.VSSM.EMBED_DIM", "[8, 24]")
    assert code == 2 and "does not fit VSSM" in errors and errors.count("\n") == 1
    code, _, errors = run_main("--cfg", config, "--opts", "TRAIN.DECAY_GROUPS", "corrected")
    assert code == 2 and "optimizer state" in errors and errors.count("\n") == 1


def test_a_kill_between_writing_and_renaming_keeps_the_run(three_epochs, tmp_path):
    """The process dies inside the save of epoch 3; the next start continues after epoch 2 and leaves no tmp file."""
    config, folder = three_epochs
    arguments = ["--cfg", config, "--output", tmp_path / "out", "--epochs", 4]
    codes, _ = run_ranks(tmp_path, arguments, 1, {"do": "kill in save", "file": "ckpt_epoch_3.pth"})
    assert codes == [-signal.SIGKILL] and list(folder.glob(".ckpt_epoch_3.pth.tmp-*"))
    codes, output = run_ranks(tmp_path, arguments)
    assert codes == [0] and "resumed" in output and "after epoch 2" in output
    assert not list(folder.glob(".*.tmp-*")) and load_checkpoint(folder / "last.pth")["epoch"] == 3
