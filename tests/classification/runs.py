"""Runs of the trainer in processes of their own, and small image folders for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def start_process(arguments: list, processes: int = 1, restarts: int = 0) -> subprocess.Popen:
    """Start the trainer in its own process, or in several through torchrun, with one thread each."""
    if processes == 1:
        return launch([], arguments)
    return launch(["--standalone", f"--nproc_per_node={processes}", f"--max-restarts={restarts}"], arguments)


def start_machines(arguments: list, machines: Sequence[Machine], restarts: int = 0) -> list[subprocess.Popen]:
    """Start one torchrun for each machine, with one process each, that find one another at the first one's address."""
    port, common = free_port(), ["--nproc_per_node=1", "--rdzv-backend=c10d", f"--max-restarts={restarts}"]
    meeting = [f"--nnodes={len(machines)}", f"--rdzv-endpoint={machines[0].address}:{port}", f"--rdzv-id={port}"]
    return [launch([*common, *meeting, f"--local-addr={machine.address}"], arguments, machine) for machine in machines]


class Machine(NamedTuple):
    """An address, the network interface that has it, and the network namespace of both; "" is that of this process."""

    address: str = "127.0.0.1"
    interface: str = "lo"
    namespace: str = ""


def free_port() -> int:
    """Return a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def launch(torchrun: list[str], arguments: list, machine: Machine | None = None) -> subprocess.Popen:
    """Start the trainer, through torchrun where there are arguments for it."""
    launcher = [sys.executable, *(["-m", "torch.distributed.run", *torchrun] if torchrun else [])]
    if machine is not None and machine.namespace:
        launcher = ["ip", "netns", "exec", machine.namespace, *launcher]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    return subprocess.Popen(
        [*launcher, "-m", "classification", *map(str, arguments)],
        cwd=ROOT,
        env=environment if machine is None else {**environment, "GLOO_SOCKET_IFNAME": machine.interface},
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
