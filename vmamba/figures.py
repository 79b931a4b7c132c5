"""Figures without a display, written whole or not at all. They need matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.weights import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that many inches; it knows nothing of pyplot, whose state others may use."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path, dpi: int = 100) -> Path:
    """Write `figure` as a file of the kind that its name ends in, atomically, and return its path.

    `CheckpointError` when the disk refuses.
    """
    data = io.BytesIO()
    figure.savefig(data, dpi=dpi, format=path.suffix[1:] or "png")
    write_bytes(path, data.getvalue())
    return path


def log_axis(axes: Axes, along: str, ticks: Iterable[float] | None = None) -> None:
    """Make the axis `along`, "x" or "y", logarithmic, labelled with plain numbers, at `ticks` where they are given."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set(**{f"{along}scale": "log"})
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter("{x:g}")
    if ticks is not None:
        axis.set_ticks(sorted(set(ticks)))
        axis.set_minor_locator(NullLocator())
    low, high = axis.get_view_interval()
    axis.set_minor_formatter("{x:g}" if high < 20 * low else NullFormatter())
