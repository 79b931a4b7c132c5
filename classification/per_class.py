"""The table of the classes: ``per_class.csv``, the worst first."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, fields
from pathlib import Path

from classification.findings import ClassFigures, Findings
from vmamba.weights import write_text

PER_CLASS = "per_class.csv"


def write_per_class(findings: Findings, folder: Path) -> Path:
    """Write a row of figures for each class, in rising order of accuracy, and return the path."""
    text = io.StringIO()
    table = csv.DictWriter(text, ["class", *(field.name for field in fields(ClassFigures)[1:])], lineterminator="\n")
    table.writeheader()
    for found in sorted(findings.per_class(), key=lambda item: (math.isnan(item.acc1), item.acc1)):
        row = {key: _short(value) for key, value in asdict(found).items()}
        table.writerow({"class": row.pop("name"), **row})
    write_text(folder / PER_CLASS, text.getvalue())
    return folder / PER_CLASS


def _short(value: object) -> object:
    """Four digits are enough of a float; what is not a number is an empty cell."""
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 4)
    return value
