"""``--profile``: a trace of a few steps that a browser can read, then a run as any other."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from vmamba.weights import load_checkpoint


@pytest.fixture
def profiled(tiny_config, run_main, tmp_path):
    """Runs one epoch (5 steps); answers (output, run folder)."""

    def run(*arguments) -> tuple[str, object]:
        code, output, errors = run_main("--cfg", tiny_config(TRAIN__EPOCHS=1, TRAIN__WARMUP_EPOCHS=0), *arguments)
        assert code == 0, errors
        return output, tmp_path / "out" / "tiny" / "default"

    return run


def test_a_trace_of_the_steps_asked_for(profiled):
    output, folder = profiled("--profile", 1)
    assert {path.name for path in (folder / "profile").iterdir()} >= {"trace.json.gz", "operators.txt", "memory.txt"}
    with gzip.open(folder / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = {event.get("name") for event in events}
    assert "ProfilerStep#4" in names and "ProfilerStep#3" not in names and "aten::linear" in names
    # the memory of the steps is in the trace and in a table
    assert "[memory]" in names
    assert "CPU Mem" in (folder / "profile" / "memory.txt").read_text()
    assert "Self CPU" in (folder / "profile" / "operators.txt").read_text()
    assert f"profile    {folder / 'profile'}" in output and not list(folder.glob(".profile*"))


def test_a_profile_changes_no_weight(profiled):
    _, folder = profiled()
    assert not (folder / "profile").exists()
    plain = load_checkpoint(folder / "last.pth")["model"]
    _, folder = profiled("--profile", 1, "--tag", "traced")
    traced = load_checkpoint(folder.parent / "traced" / "last.pth")["model"]
    assert all(torch.equal(plain[key], traced[key]) for key in plain)


def test_a_run_that_ends_early_says_what_is_missing(profiled, monkeypatch):
    output, folder = profiled("--profile", "--opts", "DATA.BATCH_SIZE", "700")
    assert "no profile: the run ended after 2 steps, and it takes 5" in output and not (folder / "profile").exists()


def test_a_profile_that_cannot_be_written_costs_a_warning(profiled, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("classification.profiling.write_bytes", full)
    output, folder = profiled("--profile", 1)
    assert "the profile cannot be written" in output and not list(folder.glob(".profile*"))
