"""The trainer with a fault in it: what a machine does to a run, at a known update.

``python -m tests.classification.faults ARGUMENTS`` is ``python -m classification ARGUMENTS`` with the fault that the
environment variable FAULT describes, as JSON: [{"do": name, "rank": the only process that has it, "at": update}, ...].
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import torch

import classification.evaluate
import classification.main
import classification.train
import vmamba.weights.files
from vmamba.errors import exit_on_user_error

FAULT = "FAULT"


def main() -> int:
    """Plant the fault that the environment describes and run the trainer; return its exit code."""
    for fault in json.loads(os.environ.get(FAULT) or "[]"):
        if fault.get("rank") in (None, int(os.environ.get("RANK", 0))):
            _PLANTS[fault["do"]](fault)
    if "SUBMITIT_FOLDER" in os.environ:
        from submitit.core.submission import process_job

        process_job(os.environ["SUBMITIT_FOLDER"])
        return 0
    return exit_on_user_error(classification.main.main)(sys.argv[1:])


def _before_update(number: int, act) -> None:
    """Have `act(trainer)` called before update `number` of this process, counted from 0."""
    update, calls = classification.train.update, iter(range(10**9))

    @functools.wraps(update)
    def wrapped(trainer, *args):
        if next(calls) == number:
            act(trainer)
        return update(trainer, *args)

    classification.train.update = wrapped


def _signal(fault: dict) -> None:
    def send():
        for pause, name in zip([0, *fault.get("pauses", [])], fault["signals"]):
            time.sleep(pause)
            os.kill(os.getpid(), getattr(signal, name))

    def act(_):
        if "after" in fault:  # so many seconds, wherever the process is then
            threading.Timer(fault["after"], send).start()
        else:
            send()

    if "at" in fault:
        _before_update(fault["at"], act)
    else:
        counts = classification.evaluate._counts

        def wrapped(*args):
            classification.evaluate._counts = counts
            act(None)
            return counts(*args)

        classification.evaluate._counts = wrapped


def _exit(fault: dict) -> None:
    _before_update(fault["at"], lambda _: os._exit(fault["code"]))


def _hang(fault: dict) -> None:
    _before_update(fault["at"], lambda _: time.sleep(600))


def _kill_loader(fault: dict) -> None:
    def act(_):
        worker = multiprocessing.active_children()[0]
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()

    _before_update(fault["at"], act)


def _nan(fault: dict) -> None:
    """Make the loss of one step NaN, and write what the update did to optimizer and weights, per process."""
    rank, forward_backward = int(os.environ.get("RANK", 0)), classification.train.forward_backward
    calls = iter(range(10**9))

    def faulty(trainer, *args, **kwargs):
        plain = trainer.criterion
        if next(calls) == fault["at"] and rank == fault["on"]:
            trainer.criterion = lambda logits, targets: plain(logits, targets) * float("nan")
        try:
            return forward_backward(trainer, *args, **kwargs)
        finally:
            trainer.criterion = plain

    update, lines = classification.train.update, []

    def noting(trainer, *args):
        before = digest(trainer)
        norm = update(trainer, *args)
        lines.append({"updates": trainer.updates, "skipped": norm is None, "same": digest(trainer) == before})
        Path(fault["notes"]).with_suffix(f".{rank}").write_text(json.dumps(lines))
        return norm

    classification.train.forward_backward, classification.train.update = faulty, noting


def digest(trainer) -> str:
    """Return the sha256 of the weights, their average and the optimizer's state."""
    found = hashlib.sha256()
    states = [trainer.network.state_dict(), trainer.average.network.state_dict()]
    for state in [*states, *trainer.optimizer.state_dict()["state"].values()]:
        for value in state.values():
            found.update(value.detach().cpu().numpy().tobytes() if isinstance(value, torch.Tensor) else b"?")
    return found.hexdigest()


def _kill_in_save(fault: dict) -> None:
    """Die between writing the temporary file and renaming it."""
    rename = os.replace

    def killing(source, target):
        if Path(target).name == fault["file"]:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = killing


def _full_disk(fault: dict) -> None:
    """Have the disk refuse so many saves, part of the way through the file."""
    save, left = torch.save, iter(range(fault["saves"]))

    def refusing(payload, file, **options):
        # pickling a tensor between processes also comes through here, to memory
        if not isinstance(file, io.BufferedWriter) or next(left, None) is None:
            return save(payload, file, **options)
        file.write(b"half a checkpoint")
        raise OSError(28, os.strerror(28))

    vmamba.weights.files.torch.save = refusing


def _small_files(fault: dict) -> None:
    """Have the system itself refuse to write more than so many bytes into a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))


def _fill_disk(fault: dict) -> None:
    """Take every byte that the disk has left."""

    def act(_):
        with open(fault["file"], "wb", buffering=0) as file:
            for size in (1 << 16, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    _before_update(fault["at"], act)


_PLANTS = {
    "signal": _signal,
    "exit": _exit,
    "hang": _hang,
    "kill loader": _kill_loader,
    "nan": _nan,
    "kill in save": _kill_in_save,
    "full disk": _full_disk,
    "small files": _small_files,
    "fill disk": _fill_disk,
}

if __name__ == "__main__":
    sys.exit(main())
