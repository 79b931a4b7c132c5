"""Runs over several machines: a torchrun on each, which meet at an address and start again what a kill has ended."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.classification.runs import ROOT


class Machine(NamedTuple):
    """An address, the network interface that has it, and the network namespace of both; "" is that of this process."""

    address: str = "127.0.0.1"
    interface: str = "lo"
    namespace: str = ""


@contextlib.contextmanager
def start_machines(
    arguments: list, machines: Sequence[Machine], processes: int = 1, restarts: int = 0
) -> Iterator[list[subprocess.Popen]]:
    """Yield a torchrun on each machine with so many processes of the trainer, one thread each; end what still runs."""
    port = _free_port()
    torchrun = [f"--nnodes={len(machines)}", f"--nproc_per_node={processes}", f"--max-restarts={restarts}"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint={machines[0].address}:{port}", f"--rdzv-id={port}"]
    words = [*map(str, arguments)]
    started = []
    for machine in machines:
        paths = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": machine.interface}
        inside = ["ip", "netns", "exec", machine.namespace] if machine.namespace else []
        launcher = [*inside, sys.executable, "-m", "torch.distributed.run", *torchrun]
        if machine.namespace:  # the host's name is of another network, and no agent would know itself as the host
            launcher.append(f"--rdzv-conf=is_host={int(machine is machines[0])}")
        started.append(
            subprocess.Popen(
                [*launcher, f"--local-addr={machine.address}", "-m", "classification", *words],
                cwd=ROOT,
                env={**os.environ, **settings},
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    try:
        yield started
    finally:
        for agent in started:
            if agent.poll() is None:
                agent.terminate()  # it ends its processes
        for agent in started:
            agent.communicate(timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
