"""``--profile``: a trace of a few steps that a browser can read, then a run as any other."""

from __future__ import annotations

import gzip
import json
import logging

import pytest
import torch

from classification.profiling import StepProfile
from classification.world import World
from vmamba.weights import load_checkpoint


def test_a_run_with_a_trace_of_the_steps_asked_for_ends_with_the_same_weights(tiny_config, run_main, tmp_path):
    """One epoch of five steps, of which the fifth is traced."""
    config = tiny_config(TRAIN__EPOCHS=1, TRAIN__WARMUP_EPOCHS=0)
    assert run_main("--cfg", config, "--tag", "plain")[0] == 0
    code, output, _ = run_main("--cfg", config, "--tag", "traced", "--profile", 1)
    plain, traced = (tmp_path / "out" / "tiny" / tag for tag in ("plain", "traced"))
    assert code == 0 and f"profile    {traced / 'profile'}" in output and not (plain / "profile").exists()
    assert {path.name for path in (traced / "profile").iterdir()} >= {"trace.json.gz", "operators.txt", "memory.txt"}
    with gzip.open(traced / "profile" / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "ProfilerStep#4" in names and "ProfilerStep#3" not in names and "aten::linear" in names
    # the memory of the steps is in the trace and in a table
    assert "[memory]" in names
    assert "CPU Mem" in (traced / "profile" / "memory.txt").read_text()
    assert "Self CPU" in (traced / "profile" / "operators.txt").read_text()
    assert not list(traced.glob(".profile*"))
    first, second = (load_checkpoint(folder / "last.pth")["model"] for folder in (plain, traced))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def profile(tmp_path, caplog):
    """Traces two of so many steps of a sum; answers what was logged. The texts of the steps are handed on."""

    def run(steps: int, world: World | None = None) -> list[str]:
        caplog.set_level(logging.INFO)
        caplog.clear()
        texts: list[str] = []
        with StepProfile(2, tmp_path, world or World(), logging.getLogger("profile"), texts.append) as found:
            for number in range(steps):
                torch.ones(3).sum()
                found.step(str(number))
        assert texts == [str(number) for number in range(steps)]
        return caplog.messages

    return run


def test_the_profile_of_a_run_cut_short_holds_what_there_was(profile, tmp_path):
    (message,) = profile(3)
    assert "no profile: the run ended after 3 steps, and it takes 5" in message
    assert not (tmp_path / "profile").exists()
    (message,) = profile(5)
    assert message.startswith("profile ") and (tmp_path / "profile" / "trace.json.gz").stat().st_size > 0


def test_only_the_first_process_traces(profile, tmp_path):
    assert profile(9, World(rank=1, size=2)) == [] and not list(tmp_path.iterdir())


def test_a_profile_that_cannot_be_written_costs_a_warning(profile, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("classification.profiling.write_bytes", full)
    (message,) = profile(9)
    assert "the profile cannot be written" in message and not list(tmp_path.glob(".profile*"))
