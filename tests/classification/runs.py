"""Runs of the trainer in processes of their own, and small image folders for them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
_PATHS = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"


class Ranks:
    """The processes of one run, forked from a server that has imported the trainer: no seconds of imports for each.

    Where there are several they find each other as those of torchrun do, by the environment. `faults` are those of
    `tests.classification.faults`; `job` is the folder of a submitit job that runs them as tasks of SLURM's job 12.
    """

    def __init__(
        self, folder: Path, arguments: list, processes: int = 1, *faults: dict[str, Any], job: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        context = _server()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.outputs = [folder / f"output{rank}.txt" for rank in range(processes)]
        self.processes = []
        for rank, output in enumerate(self.outputs):
            settings = {"FAULT": json.dumps(faults)}
            if processes > 1:
                settings |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if job is not None:
                settings |= {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(job), "SLURM_JOB_ID": "12"}
                settings |= {"SLURM_NTASKS": str(processes), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
                settings |= {"SLURM_JOB_NODELIST": "localhost", "PATH": os.environ["PATH"]}
            words = [str(argument) for argument in arguments]
            process = context.Process(target=_run_rank, args=(words, settings, str(output)))
            process.start()
            self.processes.append(process)

    def wait(self, timeout: float = 400) -> list[int]:
        """Return the exit codes by rank (-9: by SIGKILL); what still runs after `timeout` seconds is an error."""
        until = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0.1))
        if any(process.exitcode is None for process in self.processes):
            self.kill()
            raise TimeoutError("".join(path.read_text() for path in self.outputs))
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """End all of them at once, as a machine that goes down does."""
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
        for process in self.processes:
            process.join(30)

    def send(self, signum: signal.Signals, rank: int = 0) -> None:
        """Send a signal to one process, unless it has ended."""
        process = self.processes[rank]
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signum)

    def output(self, rank: int = 0) -> str:
        """Return what a process has printed."""
        return self.outputs[rank].read_text()


def run_ranks(folder: Path, arguments: list, processes: int = 1, *faults: dict[str, Any]) -> tuple[list[int], str]:
    """Run `Ranks` to the end; answer (exit codes, what the first has printed)."""
    ranks = Ranks(folder, arguments, processes, *faults)
    return ranks.wait(), ranks.output()


def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.classification.faults"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _PATHS
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _run_rank(arguments: list[str], settings: dict[str, str], output: str) -> None:
    from tests.classification import faults

    multiprocessing.set_start_method("fork", force=True)  # as in a run of its own; this one has inherited forkserver
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is inherited ignored where the tests run under nohup
    os.environ.update(settings)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv[1:] = arguments
    sys.exit(faults.main())


def start_process(
    arguments: list, processes: int = 1, *faults: dict[str, Any], module: str = "classification"
) -> subprocess.Popen:
    """Start the trainer in its own process, or in several through torchrun, with one thread each."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _PATHS, "FAULT": json.dumps(faults)}
    return subprocess.Popen(
        [*launcher, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    """Wait for a process of `start_process`; answer (exit code, output)."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def write_images(root: Path, splits: dict[str, dict[str, int]], size: int = 12) -> Path:
    """Write random PNG images: {split: {class: number}}."""
    source = np.random.default_rng(0)
    for split, classes in splits.items():
        for name, number in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(number):
                Image.fromarray(source.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def processes_with(argument: str) -> list[str]:
    """The command lines of this machine's processes that name `argument`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if argument.encode() in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


def left_behind(argument: str, seconds: float = 60) -> list[str]:
    """Return what `processes_with` still finds after so long; a loader looks every 5 seconds whether its run lives."""
    deadline = time.monotonic() + seconds
    while (found := processes_with(argument)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
