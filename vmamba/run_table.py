"""The table that a training run writes of its epochs, ``metrics.csv``, read back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from vmamba.errors import UserError

METRICS = "metrics.csv"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.csv`` as numbers; empty cells are None. `UserError` for what is no such table."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(table := csv.DictReader(file))
        if table.fieldnames and "epoch" not in table.fieldnames:
            raise KeyError("epoch")
        return [
            {name: int(value) if name == "epoch" else float(value) if value else None for name, value in row.items()}
            for row in rows
            if row["epoch"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no table of epochs ({type(error).__name__}: {error})") from None
