"""The confusion matrix: which class (row) was taken for which (column)."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from classification.findings import Findings
from vmamba.figures import new_figure, write_figure
from vmamba.weights import write_text

CONFUSION, CONFUSION_TABLE = "confusion.png", "confusion.csv"
_MOST_NAMES, _MOST_NUMBERS = 60, 20


def write_confusion(findings: Findings, folder: Path) -> list[Path]:
    """Write the matrix as ``confusion.csv``, in images, and ``confusion.png``, in shares of a row; return the paths."""
    if findings.confusion is None:
        return []
    counts, names = findings.confusion.numpy(), findings.classes
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", *names])
    table.writerows([name, *row] for name, row in zip(names, counts.tolist()))
    write_text(folder / CONFUSION_TABLE, text.getvalue())
    return [folder / CONFUSION_TABLE, _draw(counts, names, folder / CONFUSION)]


def _draw(counts: np.ndarray, names: list[str], path: Path) -> Path:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.45 * len(names) + 2), 10.0)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    drawn = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted", ylabel="label")
    figure.colorbar(drawn, label="% of the label's images", shrink=0.8)
    if len(names) <= _MOST_NAMES:
        short = [name if len(name) <= 20 else name[:19] + "…" for name in names]
        size = 9 if len(names) <= _MOST_NUMBERS else 6
        axes.set_xticks(range(len(names)), short, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(len(names)), short, fontsize=size, parse_math=False)
    if len(names) <= _MOST_NUMBERS:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    return write_figure(figure, path)
