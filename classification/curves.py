"""A picture of a run: loss, accuracy, learning rate. ``python -m classification.curves RUN_FOLDER`` draws it anew."""

from __future__ import annotations

import sys
from pathlib import Path

from vmamba.errors import UserError, exit_on_user_error
from vmamba.figures import new_figure, write_figure
from vmamba.run_table import METRICS, read_metrics

CURVES = "curves.png"
_PANELS = (
    ("loss", (("train_loss", "training"), ("val_loss", "held out"), ("ema_val_loss", "held out, EMA"))),
    ("top-1 accuracy, %", (("acc1", "held out"), ("ema_acc1", "held out, EMA"))),
    ("learning rate", (("lr", "at the end of the epoch"),)),
)


def draw_curves(folder: Path) -> Path:
    """Draw ``curves.png`` beside the ``metrics.csv`` of `folder` and return its path."""
    source = folder / METRICS
    if not source.exists():
        raise UserError(f"there is no {source}; name a run folder that has trained at least one epoch")
    rows = read_metrics(source)
    panels = [panel for panel in _PANELS if any(row.get(column) is not None for row in rows for column, _ in panel[1])]
    if not panels:
        raise UserError(f"{source} has no epochs yet; name a run folder that has trained at least one")
    figure = new_figure(13 * len(panels) / len(_PANELS), 3.8)
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for column, label in lines:
            points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
            if points:
                axes.plot(*zip(*points), label=label, marker="." if len(points) < 40 else None)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    return write_figure(figure, folder / CURVES)


def main() -> int:
    """Draw the curves of the run folder named on the command line."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m classification.curves RUN_FOLDER")
    print(draw_curves(Path(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
