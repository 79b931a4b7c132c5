"""The predictions with the highest loss: often wrong labels, odd crops and images that belong to no class."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from classification.findings import Findings
from vmamba.figures import new_figure, write_figure
from vmamba.weights import write_text

WORST_PICTURE, WORST_TABLE = "worst.png", "worst.csv"
_COLUMNS = 5


def write_worst(findings: Findings, folder: Path) -> list[Path]:
    """Write the worst predictions as ``worst.csv`` and, with the images as the network saw them, ``worst.png``."""
    names = findings.classes
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "label", "predicted", "probability", "loss"])
    for found in findings.worst:
        row = (found.name, names[found.label], names[found.predicted])
        table.writerow([*row, round(found.probability, 4), round(found.loss, 4)])
    write_text(folder / WORST_TABLE, text.getvalue())
    return [folder / WORST_TABLE, _draw(findings, folder / WORST_PICTURE)]


def _draw(findings: Findings, path: Path) -> Path:
    rows = max(-(-len(findings.worst) // _COLUMNS), 1)
    figure = new_figure(1.9 * _COLUMNS, 2.3 * rows)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, found in zip(grid, findings.worst):
        pixels = found.image.permute(1, 2, 0).numpy()
        axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=255)
        label, predicted = (_short(findings.classes[number]) for number in (found.label, found.predicted))
        right = found.label == found.predicted
        title = f"{label}\n{'is' if right else 'taken for'} {predicted} {100 * found.probability:.0f}%"
        axes.set_title(title, fontsize=8, color="black" if right else "firebrick", parse_math=False)
    return write_figure(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"
