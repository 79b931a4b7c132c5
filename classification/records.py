"""The figures of each epoch: ``metrics.csv``, ``metrics.jsonl`` and the trackers."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from classification.trackers import open_trackers
from vmamba.errors import UserError
from vmamba.run_table import METRICS, read_metrics
from vmamba.weights import write_text

METRICS_LINES = "metrics.jsonl"
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

    def __init__(self, folder: Path, start_epoch: int, config: CfgNode, logger: logging.Logger) -> None:
        self.path = folder / METRICS
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            try:
                self.rows = [row for row in read_metrics(self.path) if row["epoch"] < start_epoch]
            except UserError as error:
                logger.warning(f"{error}; it starts afresh")
        self._trackers = open_trackers(folder, config, start_epoch, logger)
        self._logger = logger

    def add(self, row: dict[str, Any]) -> None:
        """Add the figures of one epoch and write them out."""
        self.rows.append(row)
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        lines = "".join(json.dumps(_without_gaps(row), allow_nan=False) + "\n" for row in self.rows)
        try:
            write_text(self.path, text.getvalue())
            write_text(self.path.with_name(METRICS_LINES), lines)
        except UserError as error:
            self._logger.warning(f"{error}; the run goes on without it")
        for tracker in self._trackers:
            tracker.log(row, row["epoch"])

    def close(self) -> None:
        """Let the trackers send what is left."""
        for tracker in self._trackers:
            tracker.close()


def _without_gaps(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: what is not a finite number is left out, as what was not measured is."""
    return {name: value for name, value in row.items() if value is not None and math.isfinite(value)}
