"""The rows of an operator's benchmark as tables, one a network, type, batch and mode."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
TABLE = ("operator", "network", "size", "batch", "dtype", "mode")


def by_network(rows: list[Row]) -> str:
    """A markdown table each: milliseconds by stage, the sum, and the sum as a multiple of ours over the same stages.

    A contender that was skipped at a stage has a dash there, and its multiple is over the stages that it has.
    """
    tables: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["contender"] != "every contender":
            tables.setdefault(tuple(row[key] for key in TABLE), []).append(row)
    return "\n".join(_table(title, found) for title, found in tables.items())


def _table(title: tuple[Any, ...], rows: list[Row]) -> str:
    stages = sorted({row["stage"] for row in rows})
    times = {(row["contender"], row["stage"]): row["ms"] for row in rows}
    # A contender that is skipped is told before ours is timed.
    names = list(dict.fromkeys(row["contender"] for row in sorted(rows, key=lambda row: row["ms"] is None)))
    ours = names[0]
    operator, network, size, batch, dtype, mode = title
    lines = ["", f"{operator} {mode}, {network} at {size}, batch {batch}, {dtype}: milliseconds", ""]
    lines.append("| | " + " | ".join(f"stage {stage}" for stage in stages) + " | sum | times ours |")
    lines.append("|---" * (len(stages) + 3) + "|")
    for name in names:
        both = [s for s in stages if times.get((name, s)) is not None and times.get((ours, s)) is not None]
        cells = [f"{times[name, s]:.3f}" if s in both else "-" for s in stages]
        total, base = sum(times[name, s] for s in both), sum(times[ours, s] for s in both)
        ratio = f"{total / base:.2f}" + ("" if len(both) == len(stages) else " *") if base else "-"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {total:.3f} | {ratio} |")
    return "\n".join(lines)
