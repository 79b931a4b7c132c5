"""Where one model becomes faster than another as the image grows, in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Point = tuple[float, float]


def crossovers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a row for each two models of a table over sizes: which is faster where, and its gain at either end.

    Rows have "model", "size" as HxW, and "images/s" where they were timed. Between two sizes the time is taken for a
    power of the number of pixels, so that the sides at which two models are equally fast follow from both ends.
    """
    speeds: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get("images/s") is not None:
            speeds.setdefault(row["model"], {})[row["size"]] = row["images/s"]
    found = []
    for one, other in itertools.combinations(speeds, 2):
        sizes = sorted((s for s in speeds[one] if s in speeds[other]), key=_side)
        if sizes:
            gains = [(_side(s), speeds[one][s] / speeds[other][s]) for s in sizes]
            ends = " to ".join(dict.fromkeys(f"{gain:.2f} x" for _, gain in (gains[0], gains[-1])))
            found.append({"model": one, "against": other, "faster": _told(gains), "speed at the ends": ends})
    return found


def _side(size: str) -> float:
    """The side of a square of as many pixels as HxW."""
    height, width = size.split("x")
    return math.sqrt(int(height) * int(width))


def _told(gains: Sequence[Point]) -> str:
    """When a model of these gains (side, times as fast) over another is the faster one."""
    words = []
    for (low, before), (high, after) in itertools.pairwise(gains):
        if (before > 1) != (after > 1):
            side = low * (high / low) ** (math.log(before) / math.log(before / after))
            end = "from" if after > 1 else "up to"
            words.append(f"{end} about {side:.0f} pixels a side (interpolated between {low:.0f} and {high:.0f})")
    return " and ".join(words) or ("at every size" if gains[0][1] > 1 else "at no size")
