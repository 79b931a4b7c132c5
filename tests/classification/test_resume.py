"""Interrupted runs: killed anywhere, continued from the last epoch checkpoint, the same weights bit for bit."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from classification.records import read_metrics
from tests.classification.runs import finish, start_process
from vmamba.weights import load_checkpoint, save_checkpoint


def states_equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


def wait_for(process, path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


RUN = {
    "TRAIN__EPOCHS": 4,
    "TRAIN__ACCUMULATION_STEPS": 2,
    "KEEP_CHECKPOINTS": 0,
    "DATA__BATCH_SIZE": 128,
    "EMA__WARMUP": True,
}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_with_the_same_bits(tiny_config, tmp_path, processes):
    """SIGKILL some time after the second epoch's checkpoint; mixup, erasing, drop path and EMA are on."""
    config = tiny_config(**RUN)
    whole = start_process(["--cfg", config, "--output", tmp_path / "whole"], processes)
    code, output = finish(whole)
    assert code == 0, output
    broken = start_process(["--cfg", config, "--output", tmp_path / "broken"], processes)
    folder = tmp_path / "broken" / "tiny" / "default"
    wait_for(broken, folder / "ckpt_epoch_1.pth")
    time.sleep(0.3)
    broken.send_signal(signal.SIGKILL if processes == 1 else signal.SIGTERM)
    broken.communicate(timeout=60)
    assert broken.returncode != 0 and not (folder / "ckpt_epoch_3.pth").exists()
    (folder / ".ckpt_epoch_2.pth.tmp-1").write_bytes(b"left over")
    code, output = finish(start_process(["--cfg", config, "--output", tmp_path / "broken"], processes))
    assert code == 0 and "resumed" in output and "Train: [1/4]" not in output, output
    assert not list(folder.glob(".*.tmp-*"))
    expected, found = (load_checkpoint(tmp_path / run / "tiny" / "default" / "last.pth") for run in ("whole", "broken"))
    for key in ("model", "model_ema", "optimizer", "lr_scheduler", "rng", "max_accuracy", "max_accuracy_ema", "epoch"):
        assert states_equal(expected[key], found[key]), key
    rows = [read_metrics(tmp_path / run / "tiny" / "default" / "metrics.csv") for run in ("whole", "broken")]
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in r] for r in rows
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 4


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
    import os

    config, folder = three_epochs
    child = os.fork()
    if child == 0:
        rename = os.replace

        def killing(source, target):
            if Path(target).name == "ckpt_epoch_3.pth":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = killing
        from classification.main import main

        main(["--cfg", str(config), "--output", str(tmp_path / "out"), "--epochs", "4"])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL and list(folder.glob(".ckpt_epoch_3.pth.tmp-*"))
    code, output = finish(start_process(["--cfg", config, "--output", tmp_path / "out", "--epochs", 4]))
    assert code == 0 and "resumed" in output and "after epoch 2" in output
    assert not list(folder.glob(".*.tmp-*")) and load_checkpoint(folder / "last.pth")["epoch"] == 3
