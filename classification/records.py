"""Figures of each epoch: ``metrics.csv`` and TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

from vmamba.errors import UserError
from vmamba.weights import write_text

METRICS = "metrics.csv"
COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "grad_norm",
    "seconds",
    "images_per_second",
    "val_loss",
    "acc1",
    "acc5",
    "ema_val_loss",
    "ema_acc1",
    "ema_acc5",
)


class Records:
    """The table of a run. Rows of epochs that are trained again after a resume are replaced."""

    def __init__(self, folder: Path, start_epoch: int, tensorboard: bool, logger: logging.Logger) -> None:
        self.path = folder / METRICS
        kept = read_metrics(self.path) if self.path.exists() else []
        self.rows: list[dict[str, Any]] = [row for row in kept if row["epoch"] < start_epoch]
        self._writer = _open_tensorboard(folder / "tensorboard", start_epoch, logger) if tensorboard else None
        self._logger = logger

    def add(self, row: dict[str, Any]) -> None:
        """Add the figures of one epoch and write them out."""
        self.rows.append(row)
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        try:
            write_text(self.path, text.getvalue())
        except UserError as error:
            self._logger.warning(f"{error}; the run goes on without it")
        if self._writer is not None:
            try:
                for name, value in row.items():
                    if name != "epoch" and value is not None:
                        self._writer.add_scalar(name, value, row["epoch"])
                self._writer.flush()
            except OSError as error:
                self._logger.warning(f"TensorBoard is off from here on: {error}")
                self._writer = None

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.csv`` as numbers; empty cells are None."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: int(value) if name == "epoch" else float(value) if value else None for name, value in row.items()}
        for row in rows
    ]


def _open_tensorboard(folder: Path, start_epoch: int, logger: logging.Logger):
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=start_epoch)
    except (ImportError, OSError) as error:
        logger.warning(f"TensorBoard is off: {error}")
        return None
