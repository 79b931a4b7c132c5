"""What ended a run, in one line: a loader's worker that was killed, a process that died or answers no more."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from classification.progress import Progress
from classification.train import Trainer, TrainingStopped
from classification.world import World

# A dying process closes its connections a moment before it counts as dead.
_DYING_SECONDS = 2.0


@contextmanager
def explained(trainer: Trainer, progress: Progress) -> Iterator[None]:
    """Turn the death of a loader's worker or of another process into `TrainingStopped` that names it and the step.

    Any other `RuntimeError` goes on, after a line in the log of its process that says where it happened.
    """
    try:
        yield
    except TrainingStopped:
        raise
    except RuntimeError as error:
        where = f"epoch {progress.epoch}, step {trainer.so_far.step}"
        reason = _loader_worker(error) or _lost_process(error, trainer.world)
        if reason is None:
            trainer.logger.error(f"process {trainer.world.rank} failed in {where}: {error}")
            raise
        raise TrainingStopped(
            f"process {trainer.world.rank} stops in {where}: {reason}; the last checkpoint is intact, and the same "
            "command goes on after it"
        ) from error


def _loader_worker(error: RuntimeError) -> str | None:
    text = " ".join(str(error).split())
    return f"{text.rstrip('.')} (is there too little memory?)" if "DataLoader worker" in text else None


def _lost_process(error: RuntimeError, world: World) -> str | None:
    """Return which processes have died, or that the others do not answer; None when the error is another one."""
    if world.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return None
    dead = _dead(world)
    if not dead:
        return f"the other processes do not answer ({' '.join(str(error).split())[:200]})"
    names = [f"process {rank} (process id {world.peers[rank][1]} on {world.peers[rank][0]})" for rank in dead]
    return f"{', '.join(names)} died"


def _dead(world: World) -> list[int]:
    """Return the ranks on this machine that live no more, given a moment to die."""
    here = [rank for rank, (host, _) in enumerate(world.peers) if host == socket.gethostname()]
    until = time.monotonic() + _DYING_SECONDS
    while True:
        dead = [rank for rank in here if not _lives(world.peers[rank][1])]
        if dead or time.monotonic() > until:
            return dead
        time.sleep(0.05)


def _lives(process: int) -> bool:
    """Return True unless the process is gone, or dead and only waits for its parent to notice."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state not in ("Z", "X")
