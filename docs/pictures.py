"""Draw the pictures of the documentation: ``python docs/pictures.py`` (from the root of the checkout)."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from skimage import data

from vmamba_kernels import scan_order

FOLDER = Path(__file__).parent
GRID = 7
TITLES = ("1  rows", "2  columns", "3  rows, backwards", "4  columns, backwards")


def draw_scan_orders(path: Path) -> None:
    """Draw the four sequences of the cross scan over the patches of a photograph; colour runs with scan time."""
    photo = data.chelsea()[:, 75:375]
    cell = photo.shape[0] / GRID
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
    for axis, title, positions in zip(axes, TITLES, scan_order("cross2d", GRID, GRID).numpy()):
        rows, columns = np.divmod(positions, GRID)
        points = np.stack([(columns + 0.5) * cell, (rows + 0.5) * cell], axis=1)
        axis.imshow(photo, alpha=0.55, extent=(0, GRID * cell, GRID * cell, 0))
        segments = np.stack([points[:-1], points[1:]], axis=1)
        axis.add_collection(LineCollection(segments, array=np.arange(len(segments)), cmap="plasma", lw=2.5))
        axis.scatter(*points.T, c=np.arange(len(points)), cmap="plasma", s=18, zorder=3)
        axis.annotate("start", points[0], color="white", ha="center", va="bottom", fontsize=10, fontweight="bold",
                      xytext=(0, 5), textcoords="offset points")  # fmt: skip
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw_scan_orders(FOLDER / "scan_orders.png")
