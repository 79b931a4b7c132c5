"""Where else the figures of a run go: TensorBoard, Weights & Biases, MLflow. None of them can stop or slow the run.

A backend is a class with ``log(row, epoch)`` and ``close()``, made by a function of (folder, config, start epoch). It
lives in a thread of its own, `Tracker`: a server that is down costs one warning, one that hangs costs nothing.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from yacs.config import CfgNode

from classification.config import as_plain
from vmamba.weights import write_text

SECONDS_TO_CLOSE = 60.0
# What a tracker needs to find its run again after a restart.
TRACKERS = "trackers.json"


class Backend(Protocol):
    """What takes the figures of each epoch."""

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        """Take the figures of one epoch."""

    def close(self) -> None:
        """Send what is left."""


class Tracker:
    """A backend in a thread of its own; the first failure, of whatever kind, switches it off with one warning."""

    def __init__(self, name: str, open_backend: Callable[[], Backend], logger: logging.Logger) -> None:
        self.name, self._logger = name, logger
        self._rows: queue.SimpleQueue[tuple[Mapping[str, float], int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, args=(open_backend,), name=name, daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, Any], epoch: int) -> None:
        """Hand over the numbers of one epoch and return at once."""
        numbers = {name: float(value) for name, value in row.items() if name != "epoch" and value is not None}
        self._rows.put((numbers, epoch))

    def close(self) -> None:
        """Wait until all is sent, `SECONDS_TO_CLOSE` at most."""
        self._rows.put(None)
        self._thread.join(SECONDS_TO_CLOSE)
        if self._thread.is_alive():
            self._logger.warning(f"{self.name} has not answered for {SECONDS_TO_CLOSE:.0f} s; the run ends without it")

    def _serve(self, open_backend: Callable[[], Backend]) -> None:
        try:
            backend = open_backend()
            while (item := self._rows.get()) is not None:
                backend.log(*item)
            backend.close()
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self._logger.warning(f"{self.name} is off: {reason}; the run goes on without it")


class _TensorBoard:
    def __init__(self, folder: Path, config: CfgNode, start_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_epoch)

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, config: CfgNode, start_epoch: int) -> None:
        import wandb

        known = _read_known(folder, "wandb")
        self._run = wandb.init(
            project=config.WANDB,
            name=f"{config.MODEL.NAME}/{config.TAG}",
            id=known.get("id"),
            resume="allow",
            dir=str(folder),
            config=as_plain(config),
        )
        _write_known(folder, "wandb", {"id": self._run.id})

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        # steps only rise there: an epoch that is trained again after a restart is dropped, not doubled
        self._run.log(dict(row), step=epoch)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, folder: Path, config: CfgNode, start_epoch: int) -> None:
        # a server that is down is given up after seconds; by default each call tries for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow

        self._folder, known = folder, _read_known(folder, "mlflow")
        self._logged = int(known.get("epoch", -1))
        mlflow.set_experiment(config.MLFLOW)
        mlflow.start_run(run_id=known.get("id"), run_name=None if known else f"{config.MODEL.NAME}/{config.TAG}")
        self._mlflow, self._id = mlflow, mlflow.active_run().info.run_id
        if not known:
            mlflow.log_dict(as_plain(config), "config.json")
        _write_known(folder, "mlflow", {"id": self._id, "epoch": self._logged})

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        if epoch > self._logged:  # an epoch that is trained again would stand there twice
            self._mlflow.log_metrics(dict(row), step=epoch)
            self._logged = epoch
            _write_known(self._folder, "mlflow", {"id": self._id, "epoch": epoch})

    def close(self) -> None:
        self._mlflow.end_run()


def open_trackers(folder: Path, config: CfgNode, start_epoch: int, logger: logging.Logger) -> list[Tracker]:
    """Return the trackers that the configuration asks for; the packages of the others are not imported."""
    wanted = {
        "TensorBoard": (config.TENSORBOARD, _TensorBoard),
        "Weights & Biases": (config.WANDB, _Wandb),
        "MLflow": (config.MLFLOW, _MLflow),
    }

    def maker(backend: Callable[..., Backend]) -> Callable[[], Backend]:
        return lambda: backend(folder, config, start_epoch)

    return [Tracker(name, maker(backend), logger) for name, (asked, backend) in wanted.items() if asked]


_known_lock = threading.Lock()


def _read_known(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / TRACKERS).read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_known(folder: Path, name: str, entry: dict[str, Any]) -> None:
    with _known_lock:
        entries = {key: _read_known(folder, key) for key in ("wandb", "mlflow")} | {name: entry}
        write_text(folder / TRACKERS, json.dumps({key: value for key, value in entries.items() if value}) + "\n")
