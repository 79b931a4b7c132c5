"""Training logs of several makers as one table: a row an epoch (or, where a log counts so, an iteration).

Read are ``metrics.csv`` and the text log of the trainer here, the text logs of Swin and VMamba, whose form it has, the
JSON lines of ConvNeXt, and mmengine's and mmcv's logs, JSON lines or text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmamba.errors import UserError
from vmamba.run_table import METRICS, read_metrics

Table = dict[int, dict[str, float]]
_NUMBER = r"(nan|-?inf|-?\d[\d.]*(?:e[-+]?\d+)?)"
_TRAIN = re.compile(r"Train: \[(\d+)/\d+\]\[\d+/\d+\]")
_VALUE = {name: re.compile(rf"\b{name} {_NUMBER} \({_NUMBER}\)") for name in ("loss", "Loss")}
_RATE = re.compile(rf"\blr {_NUMBER}")
_SCORE = re.compile(rf"\* Acc@1 {_NUMBER} Acc@5 {_NUMBER}")
_MM_LINE = re.compile(r"(Epoch|Iter)\((train|val)\)\s+\[\s*(\d+)\s*(?:/\s*\d+)?\](?:\[\s*(\d+)\s*/\s*\d+\])?")
_MM_VALUE = re.compile(rf"([\w./-]+): {_NUMBER}(?=\s|$)")
# The names that other logs have for ours.
_NAMES = {
    "accuracy/top1": "acc1", "accuracy_top-1": "acc1", "accuracy/top5": "acc5", "accuracy_top-5": "acc5",
    "test_acc1": "acc1", "test_acc5": "acc5", "test_loss": "val_loss", "train_lr": "lr",
    "test_acc1_ema": "ema_acc1", "test_acc5_ema": "ema_acc5", "test_loss_ema": "ema_val_loss",
}  # fmt: skip
# What is a score, the higher the better, and what is not one of a whole model.
_NO_SCORE = (
    "loss", "lr", "time", "seconds", "grad_norm", "images_per_second", "memory", "step", "iter", "epoch", "parameters",
    "weight_decay",
)  # fmt: skip


@dataclass
class Log:
    """A log: its name, what its rows are counted in, and its rows, each with what was measured."""

    name: str
    unit: str
    rows: Table = field(default_factory=dict)

    def points(self, column: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of a column where it is a finite number."""
        found = ((x, row.get(column)) for x, row in sorted(self.rows.items()))
        return [(x, value) for x, value in found if value is not None and math.isfinite(value)]

    def scores(self) -> list[str]:
        """Return the columns that are scores, accuracies first."""
        names = dict.fromkeys(name for row in self.rows.values() for name in row)
        own = [name for name in names if not any(word in name for word in _NO_SCORE)]
        return sorted(own, key=lambda name: not name.endswith(("acc1", "acc5")))

    def best(self, column: str) -> tuple[int, float] | None:
        """Return (epoch, value) of the highest value of a column, the first of equals."""
        points = self.points(column)
        return max(points, key=lambda point: point[1]) if points else None


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the ends of the paths, as long as they must be to tell each from the others; equal paths are numbered."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} #{number}" for number, path in enumerate(paths, 1)]


def read_log(path: Path) -> Log:
    """Return the log in a file, or in a run folder of the trainer here; `UserError` where nothing of it is known."""
    name = path.name
    if path.is_dir():
        path = next((path / known for known in (METRICS, "vis_data/scalars.json") if (path / known).is_file()), path)
    if path.is_dir():
        raise UserError(f"{path} holds no {METRICS}; name a log file, or the folder of a run")
    if path.suffix == ".csv":
        rows = {row["epoch"]: {k: v for k, v in row.items() if v is not None} for row in read_metrics(path)}
        return Log(name, "epoch", rows)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError(f"there is no log {path}; check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    for reader in (_read_json, _read_trainer, _read_mm_text):
        log = reader(name, lines)
        if log is not None:
            return log
    raise UserError(f"{path} is no log that is known here: metrics.csv, or a log of Swin, VMamba, ConvNeXt or mmengine")


def _read_trainer(name: str, lines: list[str]) -> Log | None:
    """The text log of Swin and VMamba; the second evaluation after an epoch is that of the averaged weights."""
    rows: Table = {}
    epoch: int | None = None
    evaluations, loss = 0, math.nan
    for line in lines:
        if begun := _TRAIN.search(line):
            if int(begun[1]) != epoch or evaluations:
                evaluations = 0
            epoch = int(begun[1])
            row = rows.setdefault(epoch, {})
            if value := _VALUE["loss"].search(line):
                row["train_loss"] = float(value[2])
            if rate := _RATE.search(line):
                row["lr"] = float(rate[1])
        elif "Test: [" in line and (value := _VALUE["Loss"].search(line)):
            loss = float(value[2])
        elif (score := _SCORE.search(line)) and epoch is not None:
            prefix = "ema_" if evaluations else ""
            evaluations += 1
            rows[epoch] |= {f"{prefix}acc1": float(score[1]), f"{prefix}acc5": float(score[2])}
            if not math.isnan(loss):
                rows[epoch][f"{prefix}val_loss"] = loss
            loss = math.nan
    return Log(name, "epoch", rows) if rows else None


def _read_json(name: str, lines: list[str]) -> Log | None:
    """Lines of JSON: ConvNeXt's, a line an epoch; mmengine's and mmcv's, lines of training and of evaluation."""
    records = []
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            return None
        if not isinstance(record, dict):
            return None
        records.append(record)
    if not records:
        return None
    if any("train_loss" in record for record in records):
        rows = {int(r["epoch"]): _renamed(r, drop=("epoch",)) for r in records if "epoch" in r}
        return Log(name, "epoch", rows)
    return _of_mm(name, [(_is_training(record), record) for record in records if len(record) > 1])


def _is_training(record: dict[str, Any]) -> bool:
    return record["mode"] == "train" if "mode" in record else "loss" in record


def _read_mm_text(name: str, lines: list[str]) -> Log | None:
    records: list[tuple[bool, dict[str, Any]]] = []
    step = 0
    for line in lines:
        found = _MM_LINE.search(line)
        if found is None:
            continue
        training = found[2] == "train"
        record: dict[str, Any] = {k: float(v) for k, v in _MM_VALUE.findall(line[found.end() :])}
        if found[1] == "Epoch":
            record["epoch"] = int(found[3])
        elif training:
            record["step"] = step = int(found[3])
        else:
            record["step"] = step  # an evaluation counts its own batches
        if training or set(record) - {"epoch", "step", "data_time", "time"}:
            records.append((training, record))
    return _of_mm(name, records)


def _of_mm(name: str, records: list[tuple[bool, dict[str, Any]]]) -> Log | None:
    """Rows of mmengine's records: by epochs where the training lines have them, else by iterations."""
    training = [record for is_training, record in records if is_training]
    by_epoch = bool(training) and all("epoch" in record for record in training)
    keys = ("epoch", "step") if by_epoch else ("step", "iter")
    rows: Table = {}
    sums: dict[int, list[float]] = {}
    for is_training, record in records:
        x = record.get(keys[0], record.get(keys[1]))
        if x is None:
            continue
        row = rows.setdefault(int(x), {})
        if is_training:
            if isinstance(record.get("loss"), int | float):
                sums.setdefault(int(x), []).append(float(record["loss"]))
            row |= _renamed({k: v for k, v in record.items() if k in ("lr", "base_lr")})
        else:
            row |= _renamed(record, drop=("epoch", "step", "iter", "lr", "mode", "time", "data_time"))
    for x, losses in sums.items():
        rows[x]["train_loss"] = sum(losses) / len(losses)
    return Log(name, "epoch" if by_epoch else "iteration", rows) if rows else None


def _renamed(record: dict[str, Any], drop: Iterable[str] = ()) -> dict[str, float]:
    left = set(drop)
    return {
        _NAMES.get(name, name): float(value)
        for name, value in record.items()
        if name not in left and isinstance(value, int | float) and not isinstance(value, bool)
    }


def smoothed(values: list[float], weight: float) -> list[float]:
    """Return running means in which the past counts `weight` (0 to 1) a step, without a bias to the first value."""
    mean, out = 0.0, []
    for step, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**step) if weight < 1 else value)
    return out


def line_fit(points: list[tuple[int, float]]) -> tuple[float, float] | None:
    """Return (slope, intercept) of the line of least squares through points, None for fewer than two."""
    if len({x for x, _ in points}) < 2:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return slope, mean_y - slope * mean_x
