"""Loss and accuracy from training logs, side by side: ``python -m analyze.curves RUN_OR_LOG... --smooth 0.6``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyze.logs import Log, distinct_names, line_fit, read_log, smoothed
from analyze.output import Analysis, Output
from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error
from vmamba.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = ("train_loss", "val_loss")


def draw(logs: Sequence[Log], scores: Sequence[str], smooth: float, fit: float) -> Figure:
    """Return a figure: the losses, then a panel for each score, a line a log; the fitted lines are dashed."""
    panels: list[tuple[str, tuple[str, ...]]] = [("loss", LOSSES), *((name, (name, f"ema_{name}")) for name in scores)]
    figure = new_figure(4.8 * len(panels), 3.8)
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for number, log in enumerate(logs):
            for style, name in zip(("-", ":"), names):
                points = log.points(name)
                if not points:
                    continue
                xs, ys = zip(*points)
                label = f"{log.name}, {name}"
                axes.plot(xs, smoothed(list(ys), smooth) if smooth else ys, style, color=f"C{number}", label=label)
                line = line_fit(_last(points, fit)) if fit and style == "-" else None
                if line is not None:
                    ends = (_last(points, fit)[0][0], xs[-1])
                    axes.plot(ends, [line[0] * x + line[1] for x in ends], "--", color="black", lw=1)
        axes.set(title=title, xlabel=" or ".join(sorted({log.unit for log in logs})))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    return figure


def _last(points: list[tuple[int, float]], part: float) -> list[tuple[int, float]]:
    """The last part of the points, at least two."""
    return points[-max(2, round(len(points) * part)) :]


def rows_of(log: Log, score: str | None, fit: float) -> dict[str, Any]:
    """Return what one log comes to: its best and last score, its losses, and how fast the score still moves."""
    row: dict[str, Any] = {"log": log.name, f"{log.unit}s": len(log.rows)}
    for name in LOSSES:
        points = log.points(name)
        row[f"last {name}"] = points[-1][1] if points else None
    for name in [] if score is None else [score, f"ema_{score}"]:
        best, points = log.best(name), log.points(name)
        if best is not None:
            row |= {f"best {name}": best[1], f"{name} best at": best[0], f"last {name}": points[-1][1]}
            line = line_fit(_last(points, fit)) if fit else None
            row[f"{name} a {log.unit}"] = None if line is None else line[0]
    return row


def run(
    paths: Sequence[Path], output: Output, smooth: float = 0.0, fit: float = 0.25, names: Sequence[str] = ()
) -> Analysis:
    """Write the comparison of some logs: picture, all rows as JSON, and a table of the best epochs."""
    logs = [replace(read_log(path), name=name) for path, name in zip(paths, distinct_names(paths))]
    known = list(dict.fromkeys(name for log in logs for name in log.scores() if not name.startswith("ema_")))
    for name in names:
        if name not in known:
            raise UserError(f"--scores {name}: no log has it; they have {', '.join(known) or 'no score'}")
    chosen = list(names) or known[:1]
    output.picture("Curves", draw(logs, chosen, smooth, fit), vector=True)
    output.table("Runs", [rows_of(log, chosen[0] if chosen else None, fit) for log in logs])
    for log in logs:
        output.table(
            f"{log.name}, all of it", [{log.unit: x, **row} for x, row in sorted(log.rows.items())], printed=False
        )
    said = f"; lines smoothed, the past counting {smooth:g} a step" if smooth else ""
    told = f"; dashed, the least-squares line through the last {fit:.0%}" if fit else ""
    return output.close(f"Values as the logs state them, the training loss its mean over the epoch{said}{told}.")


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m analyze.curves", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path, metavar="RUN_OR_LOG", help="run folders and log files")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("output/analyze/curves"))
    parser.add_argument("--scores", nargs="+", default=[], metavar="NAME", help="panels (default: the first score)")
    parser.add_argument("--smooth", type=float, default=0.0, metavar="W", help="weight of the past, 0 to 1 (default 0)")
    parser.add_argument("--fit", type=float, default=0.25, metavar="P", help="part at the end that a line is fitted to")
    arguments = parser.parse(argv)
    if not 0 <= arguments.smooth < 1 or not 0 <= arguments.fit <= 1:
        raise UserError("--smooth, --fit: give numbers from 0 to 1, --smooth below 1")
    output = Output(arguments.out, "curves", "Curves of training runs")
    run(arguments.logs, output, arguments.smooth, arguments.fit, arguments.scores)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
