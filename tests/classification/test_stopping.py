"""Signals: one checkpoint at an update that all processes agree on, and a documented exit code."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from classification.stopping import Interrupted, Stopping
from classification.world import World
from tests.classification.runs import finish, left_behind, run_ranks, start_process

LONG = {"TRAIN__EPOCHS": 500, "DATA__BATCH_SIZE": 64, "DATA__NUM_WORKERS": 1, "PRINT_FREQ": 1}


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("SIGUSR1", 75), ("SIGUSR2", 75)]
)
def test_a_signal_ends_in_one_checkpoint_and_its_exit_code(tiny_config, tmp_path, name, code):
    arguments = ["--cfg", tiny_config(), "--output", tmp_path / "out"]
    codes, output = run_ranks(tmp_path, arguments, 1, {"do": "signal", "at": 1, "signals": [name]})
    assert codes == [code] and f"ended by {name}, exit code {code}; the same command goes on" in output, output
    folder = tmp_path / "out" / "tiny" / "default"
    assert [path.name for path in folder.glob("ckpt*")] == ["ckpt_epoch_0_step_2.pth"]


def test_the_second_interrupt_ends_at_once(tiny_config, tmp_path):
    fault = {"do": "signal", "at": 1, "signals": ["SIGINT", "SIGINT"], "pauses": [0.7]}
    codes, output = run_ranks(tmp_path, ["--cfg", tiny_config(), "--output", tmp_path / "out"], 1, fault)
    assert codes == [130] and "ended by" not in output
    assert not list((tmp_path / "out" / "tiny" / "default").glob("ckpt*"))


def test_one_key_press_that_arrives_twice_is_one(tiny_config, tmp_path):
    fault = {"do": "signal", "at": 1, "signals": ["SIGINT", "SIGINT"], "pauses": [0.05]}
    codes, output = run_ranks(tmp_path, ["--cfg", tiny_config(), "--output", tmp_path / "out"], 1, fault)
    assert codes == [130] and "ended by SIGINT" in output, output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_passes_it_on_and_the_loaders_outlive_it(tiny_config, tmp_path, signum):
    """torchrun signals the process groups of its processes; a loader's worker that died of it would cost the save."""
    arguments = ["--cfg", tiny_config(**LONG), "--output", tmp_path / "out"]
    folder = tmp_path / "out" / "tiny" / "default"
    process = start_process(arguments, processes=2)
    wait_for_text(process, folder / "log_rank1.txt", "Train: [0/500][1/")
    process.send_signal(signum)
    code, output = finish(process)
    # torchrun itself: a traceback and 1, whatever its processes answer
    assert code == 1 and f"ended by {signum.name}, exit code {128 + signum}" in output, output
    assert len(list(folder.glob("ckpt*"))) == 1 and "_step_" in next(folder.glob("ckpt*")).name
    assert "DataLoader worker" not in output and not left_behind(str(tmp_path))


def test_handlers_are_put_back_and_an_ignored_hangup_stays_ignored():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopping.requested == 0
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Interrupted, match="SIGUSR1") as found:
                stopping.check(World())
            assert found.value.code == 75
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert before == {signum: signal.getsignal(signum) for signum in before}


def test_a_process_that_has_lost_torchrun_ends_as_by_sigterm(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with Stopping() as stopping:
        assert stopping.requested == 0
        monkeypatch.setattr(os, "getppid", lambda: 1)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stopping.check(World())


def wait_for_text(process, path: Path, text: str, seconds: float = 120) -> None:
    """Wait until a file of a running process holds `text`."""
    deadline = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} has no '{text}'"
        time.sleep(0.05)
