"""Several machines and lost processes: torchrun's agents meet at an address, and start a run again after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.classification.machines import Machine, start_machines
from tests.classification.runs import finish, start_process
from tests.classification.same_end import differences
from vmamba.weights import load_checkpoint

RUN = {"TRAIN__EPOCHS": 4, "KEEP_CHECKPOINTS": 0, "DATA__BATCH_SIZE": 128, "PRINT_FREQ": 1}


def starts(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


def kill_rank(rank: int, folder: Path) -> None:
    """SIGKILL the trainer process of that rank whose command line names `folder`."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            ours = str(folder).encode() in words and b"torch.distributed.run" not in words
            if ours and f"RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                return
    raise AssertionError(f"no process of rank {rank} names {folder}")


def wait_for(process: subprocess.Popen, path: Path, seconds: float = 240) -> None:
    """Wait until a running process has written a file."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)


def test_two_machines_that_meet_on_a_port(tiny_config, tmp_path):
    config = tiny_config(TRAIN__EPOCHS=1, TRAIN__WARMUP_EPOCHS=0)
    with start_machines(["--cfg", config, "--output", tmp_path / "two"], [Machine(), Machine()]) as agents:
        found = [finish(agent) for agent in agents]
    assert [code for code, _ in found] == [0, 0], found
    folder = tmp_path / "two" / "tiny" / "default"
    assert load_checkpoint(folder / "last.pth")["world_size"] == 2
    (start,) = starts(folder)
    assert (start["processes"], start["machines"], start["restart"]) == (2, 2, 0)
    assert sum("2 process(es) on cpu" in output for _, output in found) == 1
    assert {path.name for path in folder.glob("log*")} == {"log_rank0.txt", "log_rank1.txt"}


@contextlib.contextmanager
def two_namespaces() -> Iterator[list[Machine]]:
    """Two network namespaces joined by one cable; skips where the kernel or the user may not make them."""
    names, machines = [f"vm{os.getpid()}{end}" for end in "ab"], []
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add {names[0]} netns {names[0]} type veth peer name {names[1]} netns {names[1]}")
    for number, name in enumerate(names, 1):
        machines.append(Machine(f"10.77.5.{number}", name, name))
        commands.append(f"ip -n {name} address add 10.77.5.{number}/24 dev {name}")
        commands += [f"ip -n {name} link set {device} up" for device in (name, "lo")]
    try:
        for command in commands:
            try:
                subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=20)
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
        yield machines
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=20)


@pytest.mark.slow
def test_two_machines_with_networks_of_their_own_end_as_one_machine(tiny_config, tmp_path):
    config = tiny_config(**{**RUN, "TRAIN__EPOCHS": 2})
    arguments = ["--cfg", config, "--output", tmp_path / "two"]
    with two_namespaces() as machines, start_machines(arguments, machines) as agents:
        found = [finish(agent) for agent in agents]
    assert [code for code, _ in found] == [0, 0], found
    assert starts(tmp_path / "two" / "tiny" / "default")[0]["machines"] == 2
    code, output = finish(start_process(["--cfg", config, "--output", tmp_path / "one"], processes=2))
    assert code == 0, output
    assert differences(tmp_path / "one" / "tiny" / "default", tmp_path / "two" / "tiny" / "default") == []


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_a_killed_rank_costs_a_restart_and_no_epoch(tiny_config, tmp_path, machines):
    """torchrun starts all processes again; they go on from the last checkpoint and end with the same bits."""
    config = tiny_config(**RUN)
    folder = tmp_path / "broken" / "tiny" / "default"
    arguments = ["--cfg", config, "--output", tmp_path / "broken"]
    with start_machines(arguments, [Machine()] * machines, processes=2 // machines, restarts=2) as agents:
        wait_for(agents[0], folder / "ckpt_epoch_1.pth")
        time.sleep(0.1)
        assert not (folder / "ckpt_epoch_3.pth").exists()
        kill_rank(1, tmp_path / "broken")
        found = [finish(agent) for agent in agents]
    assert [code for code, _ in found] == [0] * machines, found
    log = (folder / "log_rank0.txt").read_text()
    assert "resumed" in log and log.count("Train: [0/4][0/") == 1
    first, second = starts(folder)
    assert (first["restart"], second["restart"]) == (0, 1) and second["epoch"] >= 2
    code, output = finish(start_process(["--cfg", config, "--output", tmp_path / "whole"], processes=2))
    assert code == 0, output
    assert differences(tmp_path / "whole" / "tiny" / "default", folder) == []
