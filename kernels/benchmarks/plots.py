"""Pictures of a benchmark's rows, where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        print("plot skipped: matplotlib is not installed")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _timed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("ms") is not None]


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    print(f"plot: {path}")


def bars(rows: list[dict[str, Any]], path: Path) -> None:
    """Times of every contender, as a multiple of ours, one panel a mode, one group a shape."""
    pyplot, timed = _pyplot(), _timed(rows)
    if pyplot is None or not timed:
        return
    modes = list(dict.fromkeys(row["mode"] for row in timed))
    names = list(dict.fromkeys(row["contender"] for row in timed))
    figure, axes = pyplot.subplots(len(modes), 1, figsize=(12, 4 * len(modes)), squeeze=False)
    for axis, mode in zip(axes[:, 0], modes):
        shown = [row for row in timed if row["mode"] == mode]
        groups = list(dict.fromkeys(_group(row) for row in shown))
        for i, name in enumerate(names):
            points = [(groups.index(_group(r)), r["times_ours"]) for r in shown if r["contender"] == name]
            width = 0.8 / len(names)
            axis.bar([x + width * i for x, _ in points], [y for _, y in points], width, label=name)
        axis.set_xticks(range(len(groups)), groups, rotation=30, ha="right", fontsize=7)
        axis.set_yscale("log")
        axis.set_title(mode)
        axis.set_ylabel("times as long as ours")
    axes[0, 0].legend(fontsize=7, ncol=4)
    _save(pyplot, figure, path)


def _group(row: dict[str, Any]) -> str:
    return f"{row['network'].split(',')[0]} {row['size']} s{row['stage']} b{row['batch']} {row['dtype']}"


def lines(rows: list[dict[str, Any]], path: Path, grows: tuple[str, ...]) -> None:
    """Nanoseconds per element against each quantity that grows: a panel an operator and mode, a line a contender."""
    pyplot, timed = _pyplot(), _timed(rows)
    if pyplot is None or not timed:
        return
    panels = list(dict.fromkeys((row["operator"], row["mode"]) for row in timed))
    figure, axes = pyplot.subplots(len(panels), len(grows), figsize=(6 * len(grows), 4 * len(panels)), squeeze=False)
    for (operator, mode), across in zip(panels, axes):
        for axis, quantity in zip(across, grows):
            shown = [r for r in timed if (r["operator"], r["mode"], r["network"]) == (operator, mode, quantity)]
            for name in dict.fromkeys(row["contender"] for row in shown):
                points = sorted((row[quantity], row["ns_per_element"]) for row in shown if row["contender"] == name)
                axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel(quantity)
            axis.set_ylabel("ns per element")
            axis.set_title(f"{operator}, {mode}")
            axis.legend(fontsize=7)
    _save(pyplot, figure, path)
