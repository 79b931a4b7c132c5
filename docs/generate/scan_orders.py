"""Pictures of the scan orders as SVG, from the index maps that the operators read."""

from __future__ import annotations

import torch

from vmamba_kernels import list_scan_orders, scan_order

CELL, HEIGHT, WIDTH = 22, 4, 6
# From the start of a sequence to its end: blue to orange, readable on a light and on a dark page.
START, END = (59, 130, 246), (234, 120, 20)


def pictures() -> str:
    """Return a section for each registered order with one panel a sequence."""
    return "".join(f"### `{name}`\n\n{drawn(name, scan_order(name, HEIGHT, WIDTH))}\n" for name in list_scan_orders())


def snake() -> str:
    """Return the picture of the order that the page registers as an example."""
    rows = torch.arange(HEIGHT * WIDTH).view(HEIGHT, WIDTH).clone()
    rows[1::2] = rows[1::2].flip(1)
    return drawn("snake", torch.stack([rows.flatten(), rows.flatten().flip(0)]))


def drawn(name: str, sequences: torch.Tensor) -> str:
    """Return one SVG panel for each of the sequences [K, HEIGHT * WIDTH], inside one HTML block."""
    panels = "".join(_panel(k, row) for k, row in enumerate(sequences.tolist()))
    return f'<div class="scan-order" role="img" aria-label="the sequences of {name}">{panels}</div>\n'


def _panel(k: int, positions: list[int]) -> str:
    points = [((p % WIDTH + 0.5) * CELL, (p // WIDTH + 0.5) * CELL) for p in positions]
    last = len(points) - 1
    parts = [f'<rect class="frame" width="{WIDTH * CELL}" height="{HEIGHT * CELL}"/>']
    for i, ((x1, y1), (x2, y2)) in enumerate(zip(points, points[1:])):
        parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{_colour(i / last)}"/>')
    for i, (x, y) in enumerate(points):
        parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{5 if i == 0 else 2.5:g}" fill="{_colour(i / last)}"/>')
    box = f"0 0 {WIDTH * CELL} {HEIGHT * CELL}"
    svg = f'<svg viewBox="{box}" width="{WIDTH * CELL}">{"".join(parts)}</svg>'
    return f"<figure>{svg}<figcaption>{k}</figcaption></figure>"


def _colour(t: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * t):02x}" for a, b in zip(START, END))


if __name__ == "__main__":
    print(pictures())
