"""Training as a SLURM job: what is submitted, and that a preempted job queues again and goes on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from classification.submit import main
from tests.classification.runs import Ranks
from vmamba.errors import exit_on_user_error
from vmamba.weights import load_checkpoint

submit = exit_on_user_error(main)


def test_without_submitit_it_is_one_line(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert submit(["--cfg", str(tiny_config()), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: python -m classification.submit needs submitit: pip install")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "0"], "--nodes must be at least 1"),
        (["--batchsize", "3"], "Did you mean '--batch-size'?"),
        (["--opts", "TRAIN.EPOCHS", "0"], "TRAIN.EPOCHS must be at least 1"),
    ],
)
def test_a_wrong_command_line_is_never_submitted(tiny_config, tmp_path, capsys, arguments, message):
    assert submit(["--cfg", str(tiny_config()), "--output", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.glob("tiny/*"))


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """SLURM's commands, which note what they are asked; answers the folder of their notes."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, answer in (("sbatch", "Submitted batch job 12"), ("srun", ""), ("scontrol", "")):
        path = commands / name
        path.write_text(f'#!/bin/sh\ncat "$1" > {commands}/{name}.file 2>/dev/null\necho $* >> {path}.noted\n')
        path.write_text(path.read_text() + f"echo {answer}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return commands


def test_a_preempted_job_queues_again_and_goes_on(tiny_config, tmp_path, capsys, cluster):
    """sbatch, both tasks of the job with a preemption in the middle (SIGTERM, then SIGUSR2), and the second turn."""
    config = tiny_config(DATA__BATCH_SIZE=64, TRAIN__EPOCHS=2)
    flags = ["--nodes", "1", "--ngpus", "2", "--partition", "night", "--minutes", "90", "--device", "cpu"]
    assert submit(["--cfg", str(config), "--output", str(tmp_path / "out"), *flags]) == 0
    assert "job 12: 1 node(s) x 2 process(es)" in capsys.readouterr().out
    script = (cluster / "sbatch.file").read_text()
    for line in ("nodes=1", "ntasks-per-node=2", "partition=night", "time=90", "signal=USR2@120", "gpus-per-node=0"):
        assert f"#SBATCH --{line}\n" in script, script
    run = tmp_path / "out" / "tiny" / "default"
    fault = {"do": "signal", "rank": 0, "at": 3, "signals": ["SIGTERM", "SIGUSR2"], "pauses": [0]}
    tasks = Ranks(tmp_path, [], 2, fault, job=run / "jobs")
    tasks.processes[0].join(60)
    assert tasks.processes[0].exitcode == 255, tasks.output()
    assert (cluster / "scontrol.noted").read_text() == "requeue 12\n"
    assert tasks.processes[1].exitcode is None  # it waits for the cluster, which ends all tasks of a requeued job
    tasks.kill()
    assert [path.name for path in run.glob("ckpt*")] == ["ckpt_epoch_0_step_4.pth"]
    tasks = Ranks(tmp_path, [], 2, job=run / "jobs")
    assert tasks.wait() == [0, 0] and "4 of 11 steps into epoch" in tasks.output()
    assert load_checkpoint(run / "last.pth")["epoch"] == 1
