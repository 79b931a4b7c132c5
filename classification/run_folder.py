"""The folder of a run: made, locked, cleaned, described."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yacs.config import CfgNode

from classification.config import as_plain, as_yaml
from classification.world import World
from vmamba.errors import UserError
from vmamba.weights import remove_leftovers, write_text


def run_folder(config: CfgNode) -> Path:
    """Return OUTPUT/MODEL.NAME/TAG."""
    return Path(config.OUTPUT or "output") / config.MODEL.NAME / config.TAG


@contextmanager
def open_run_folder(config: CfgNode, world: World) -> Iterator[Path]:
    """Yield the run folder; for training, free of a killed run's leftovers and locked against a second run."""
    folder = run_folder(config)
    world.from_first(lambda: _make(folder))
    if config.EVAL_MODE or config.THROUGHPUT_MODE or config.TRAINCOST_MODE:
        yield folder
        return
    lock = world.from_first(lambda: _lock_and_clean(folder))
    try:
        yield folder
    finally:
        if world.first:
            os.close(lock)


def write_settings(config: CfgNode, folder: Path) -> None:
    """Write the configuration as ``config.json`` and as ``config.yaml``, which ``--cfg`` reads."""
    write_text(folder / "config.json", json.dumps(as_plain(config), indent=1) + "\n")
    write_text(folder / "config.yaml", as_yaml(config))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log_rank0.txt", "a"):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --output") from None


def _lock_and_clean(folder: Path) -> int:
    """Return the locked file. The lock is this process's alone: no child inherits it, and it ends with the process."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(lock, 200).decode(errors="replace").strip() or "another run"
        os.close(lock)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{holder} is writing to {folder}; wait for it, or choose another --tag") from None
        raise UserError(f"cannot lock {folder}: {error.strerror}; choose another --output") from None
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    remove_leftovers(folder)
    return lock
