"""Processes and disks that fail: what the run says, with which exit code it ends, and that nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import replace

import pytest
import torch

from classification.checkpoint import drop_old
from classification.progress import Layout
from classification.sampler import SeededBatches
from classification.world import World
from tests.classification.runs import Ranks, finish, left_behind, run_ranks, start_process
from vmamba.weights import load_checkpoint, newest_good_checkpoint, save_checkpoint

TWO = {"DATA__BATCH_SIZE": 64, "SAVE_STEPS": 2, "TRAIN__EPOCHS": 2}


@pytest.fixture
def folder(tmp_path):
    """The run folder of the tests here."""
    return tmp_path / "out" / "tiny" / "default"


def test_the_death_of_a_process_ends_the_run_and_is_named(tiny_config, tmp_path, folder):
    """Through torchrun: process 1 leaves without a word; no process stays behind, and the run goes on."""
    config = tiny_config(**TWO, DATA__NUM_WORKERS=1)
    arguments = ["--cfg", config, "--output", tmp_path / "out"]
    fault = {"do": "exit", "rank": 1, "at": 5, "code": 17}
    process = start_process(arguments, 2, fault, module="tests.classification.faults")
    code, output = finish(process, timeout=120)
    assert code == 1 and "exitcode  : 17" in output, output
    assert "process 0 stops in epoch 0, step 5: process 1 (process id" in output and ") died; the last" in output
    assert not left_behind(str(tmp_path))
    assert newest_good_checkpoint(folder)[0] is not None
    codes, output = run_ranks(tmp_path, arguments, 2)
    assert codes == [0, 0] and "4 of 11 steps into epoch" in output, output


def test_a_process_that_hangs_is_an_error_after_the_timeout(tiny_config, tmp_path):
    arguments = ["--cfg", tiny_config(**TWO), "--output", tmp_path / "out", "--opts", "TIMEOUT", 15]
    ranks = Ranks(tmp_path, arguments, 2, {"do": "hang", "rank": 1, "at": 3})
    ranks.processes[0].join(60)
    assert ranks.processes[0].exitcode == 1
    assert "process 0 stops in epoch 0, step 3: the other processes do not answer" in ranks.output()
    ranks.kill()


def test_a_killed_loader_worker_is_named_and_the_run_goes_on(tiny_config, tmp_path):
    arguments = ["--cfg", tiny_config(**TWO, DATA__NUM_WORKERS=2), "--output", tmp_path / "out"]
    codes, output = run_ranks(tmp_path, arguments, 1, {"do": "kill loader", "at": 3})
    assert codes == [1] and "process 0 stops in epoch 0, step" in output, output
    assert "DataLoader worker (pid" in output and "the last checkpoint is intact" in output
    codes, output = run_ranks(tmp_path, arguments)
    # the last save before the main process met the loss: what the loaders had ready may have come first
    assert codes == [0] and re.search(r"resumed .* (2|4|6) of 22 steps into epoch 0", output), output


def test_nan_on_one_process_of_two_skips_the_update_on_both(tiny_config, tmp_path):
    config = tiny_config(DATA__BATCH_SIZE=64, TRAIN__EPOCHS=1, TRAIN__ACCUMULATION_STEPS=2)
    fault = {"do": "nan", "on": 1, "at": 4, "notes": str(tmp_path / "notes")}
    codes, output = run_ranks(tmp_path, ["--cfg", config, "--output", tmp_path / "out"], 2, fault)
    notes = [json.loads((tmp_path / f"notes.{rank}").read_text()) for rank in (0, 1)]
    assert codes == [0, 0] and notes[0] == notes[1] and "epoch 0 step 5: the loss or gradient is not finite" in output
    assert [(note["skipped"], note["same"]) for note in notes[0]] == [(n == 2, n == 2) for n in range(6)]


def test_the_lock_names_its_holder_and_ends_with_it(tiny_config, tmp_path, folder):
    """A second run is refused; once the first is killed the next starts at once, whatever its loaders still do."""
    config = tiny_config(DATA__BATCH_SIZE=64, DATA__NUM_WORKERS=2, TRAIN__EPOCHS=500, SAVE_STEPS=2, KEEP_CHECKPOINTS=0)
    arguments = ["--cfg", config, "--output", tmp_path / "out"]
    first = Ranks(tmp_path / "first", arguments)
    try:
        while not (folder / "last.pth").is_file():
            assert first.processes[0].exitcode is None, first.output()
            time.sleep(0.05)
        codes, output = run_ranks(tmp_path / "second", arguments)
        assert codes == [2] and output.count("\n") == 1, output
        assert output.startswith(f"error: process {first.processes[0].pid} on ") and "is writing to" in output
        weights = shutil.copy(folder / "last.pth", tmp_path / "weights.pth")  # the first run goes on replacing its own
        assert run_ranks(tmp_path / "second", [*arguments, "--eval", "--pretrained", weights])[0] == [0]
    finally:
        first.kill()
    assert run_ranks(tmp_path / "third", [*arguments, "--epochs", 1])[0] == [0]


def test_a_full_disk_is_reported_and_the_next_save_tries_again(tiny_config, tmp_path, folder):
    arguments = ["--cfg", tiny_config(TRAIN__EPOCHS=3), "--output", tmp_path / "out"]
    codes, output = run_ranks(tmp_path, arguments, 1, {"do": "full disk", "saves": 3})
    assert codes == [0] and "Traceback" not in output, output
    assert "last.pth" not in output.partition("ERROR")[0] and output.count("No space left on device; what was") == 3
    assert not list(folder.glob(".*.tmp-*")) and load_checkpoint(folder / "last.pth")["epoch"] == 2


@pytest.mark.parametrize("faults", [({"do": "signal", "at": 2, "signals": ["SIGTERM"]},), ()])
def test_a_disk_that_stays_full_is_an_exit_code(tiny_config, tmp_path, folder, faults):
    """At the end of the epochs and at a signal; the checkpoint before is what it was, and the run goes on from it."""
    config = tiny_config(TRAIN__EPOCHS=3)
    arguments = ["--cfg", config, "--output", tmp_path / "out"]
    assert run_ranks(tmp_path, [*arguments, "--epochs", 1])[0] == [0]
    before = (folder / "ckpt_epoch_0.pth").read_bytes()
    limit = {"do": "small files", "bytes": len(before) // 2}
    codes, output = run_ranks(tmp_path, arguments, 1, limit, *faults)
    assert codes == [1] and "cannot write" in output and "what was there before is intact" in output, output
    assert ("SIGTERM ends the run, and" if faults else "all epochs are trained, but not all is on the disk") in output
    assert "Traceback" not in output
    assert (folder / "ckpt_epoch_0.pth").read_bytes() == before and not list(folder.glob(".*.tmp-*"))
    codes, output = run_ranks(tmp_path, arguments)
    assert codes == [0] and "after epoch 0" in output and load_checkpoint(folder / "last.pth")["epoch"] == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_small_disk_fills_up_and_what_was_saved_goes_on(tiny_config, tmp_path, small_disk):
    """Every byte is taken after the first epoch: checkpoint, metrics, curves and log are all refused."""
    arguments = ["--cfg", tiny_config(TRAIN__EPOCHS=3, KEEP_CHECKPOINTS=1), "--output", small_disk]
    assert run_ranks(tmp_path, [*arguments, "--epochs", 1])[0] == [0]
    folder, filler = small_disk / "tiny" / "default", small_disk / "filler"
    before = (folder / "ckpt_epoch_0.pth").read_bytes()
    codes, output = run_ranks(tmp_path, arguments, 1, {"do": "fill disk", "at": 2, "file": str(filler)})
    assert codes == [1] and "not all is on the disk" in output and "No space left on device" in output, output
    assert "Traceback" not in output and (folder / "ckpt_epoch_0.pth").read_bytes() == before
    filler.unlink()
    codes, output = run_ranks(tmp_path, arguments)
    assert codes == [0] and "after epoch 0" in output and load_checkpoint(folder / "last.pth")["epoch"] == 2


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: flipped(data, len(data) // 2)])
def test_a_damaged_checkpoint_inside_an_epoch_is_set_aside(tiny_config, tmp_path, folder, change):
    arguments = ["--cfg", tiny_config(**TWO), "--output", tmp_path / "out"]
    fault = {"do": "signal", "at": 4, "signals": ["SIGTERM"]}
    assert run_ranks(tmp_path, arguments, 1, fault)[0] == [143]
    newest = folder / "ckpt_epoch_0_step_5.pth"
    newest.write_bytes(change(newest.read_bytes()))
    codes, output = run_ranks(tmp_path, [*arguments, "--opts", "KEEP_CHECKPOINTS", 1, "--epochs", 1])
    assert codes == [0] and "4 of 22 steps into epoch" in output, output
    (warning,) = [line for line in output.splitlines() if "is damaged" in line]
    assert "ckpt_epoch_0_step_5.pth is damaged (its sha256 is" in warning
    assert warning.endswith("resuming from ckpt_epoch_0_step_4.pth instead")
    assert (folder / "ckpt_epoch_0_step_5.pth.damaged").exists() and kept(folder)[0] == "0"


def flipped(data: bytes, place: int) -> bytes:
    """Return `data` with one byte changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_keep_counts_whole_epochs_and_parts_apart(tmp_path):
    for name in ("0", "1", "1_step_4", "2_step_2", "2_step_4", "2_step_10"):
        save_checkpoint(tmp_path / f"ckpt_epoch_{name}.pth", {"x": torch.zeros(1)})
    drop_old(tmp_path, 2)
    assert kept(tmp_path) == ["0", "1", "2_step_10", "2_step_4"]
    save_checkpoint(tmp_path / "ckpt_epoch_2.pth", {"x": torch.zeros(1)})
    drop_old(tmp_path, 2)
    assert kept(tmp_path) == ["1", "2", "2_step_10", "2_step_4"]
    save_checkpoint(tmp_path / "ckpt_epoch_3_step_1.pth", {"x": torch.zeros(1)})
    drop_old(tmp_path, 1)
    assert kept(tmp_path) == ["2", "3_step_1"]


def kept(folder) -> list[str]:
    """Return what the names of checkpoints say."""
    return sorted(path.stem.removeprefix("ckpt_epoch_") for path in folder.glob("ckpt*"))


LAYOUT = Layout(images=100, images_per_step=10, steps=10, accumulation=2, seed=0)


@pytest.mark.parametrize(
    ("change", "step", "expected"),
    [
        ({}, 6, 6),
        ({}, 9, 9),
        ({"images_per_step": 5, "steps": 20}, 6, 12),
        ({"images_per_step": 20, "steps": 5}, 6, 2),
        ({"images_per_step": 20, "steps": 5, "accumulation": 1}, 6, 3),
        ({"images_per_step": 30, "steps": 3, "accumulation": 1}, 6, 2),
        ({"accumulation": 4}, 6, 4),
        ({"images_per_step": 30, "steps": 3}, 10, 3),
        ({"seed": 1}, 6, 0),
        ({"images": 101}, 6, 0),
    ],
)
def test_an_epoch_goes_on_in_another_layout_without_leaving_out_an_image(change, step, expected):
    layout = replace(LAYOUT, **change)
    found = layout.step_after(step, LAYOUT)
    assert found == expected and found * layout.images_per_step <= step * LAYOUT.images_per_step
    assert layout.updates_at(found) * layout.accumulation == found or found in (step, layout.steps)


@pytest.mark.parametrize("batch", [128, 32])
def test_processes_and_batch_may_change_inside_an_epoch(tiny_config, tmp_path, batch):
    """Two processes stop after 256 images; one goes on at that image, at the rate of that place in the schedule."""
    config = tiny_config(DATA__BATCH_SIZE=64, PRINT_FREQ=1, TRAIN__EPOCHS=2)
    arguments = ["--cfg", config, "--output", tmp_path / "out"]
    fault = {"do": "signal", "rank": 1, "at": 1, "signals": ["SIGTERM"]}
    assert run_ranks(tmp_path, arguments, 2, fault)[0] == [143, 143]
    codes, output = run_ranks(tmp_path, [*arguments, "--batch-size", batch])
    assert codes == [0] and "was written by 2 processes, there are 1 now" in output, output
    steps, place = 1437 // batch, 256 // batch
    moved = f"it goes on at step {place} of {steps}, as ckpt_epoch_0_step_2.pth stopped at 2 of 11"
    assert (moved in output) == (batch != 128)
    first = next(line for line in output.splitlines() if "Train: [" in line)
    assert f"Train: [0/2][{place}/{steps}]" in first
    scale = batch / 512
    expected = 5e-7 * scale + place / steps * (1e-2 - 5e-7) * scale
    assert float(first.split(" lr ")[1].split()[0]) == pytest.approx(expected, abs=1e-6)


def test_an_epoch_entered_late_has_the_batches_that_it_would_have_had():
    whole, late = (SeededBatches(100, 8, World(1, 2), seed=3, train=True) for _ in range(2))
    whole.set_epoch(4)
    late.set_epoch(4, start=3)
    assert list(late) == list(whole)[3:] and len(late) == len(whole) == 6
