"""Effective receptive fields, side by side: ``python -m analyze.erf --model NAME --compare NAME... --out DIR``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from analyze.command import folder_of, new_parser, one_line, subjects_of, tracked
from analyze.field import THRESHOLDS, Field, displayed, mean_field, squares, with_scan_order
from analyze.output import Analysis, Output
from analyze.pictures import pictures
from analyze.subject import Subject
from vmamba.errors import UserError
from vmamba.figures import new_figure
from vmamba.models import VSSM, Vim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD = (
    "The central unit of stage {level}: the sum over channels of relu of its features at the central position. Its "
    "gradient at the pixels, relu, summed over colours, mean over {used} images ({source}{skipped}). Drawn: the fifth "
    "root over its maximum. Area ratio: the smallest centred odd square with that part of the sum, over the image. "
    "After RepLKNet, 2022."
)
Grid = Mapping[str, list[Subject]]


def draw(fields: Mapping[str, list[tuple[str, Field]]]) -> Figure:
    """Return the figure of a grid of fields: a row for each key, a column for each titled field.

    Rows of one field each are drawn side by side.
    """
    wide = max(len(row) for row in fields.values())
    shape = (len(fields), wide) if wide > 1 else (1, len(fields))
    figure = new_figure(2.6 * shape[1] + 0.2, 3.0 * shape[0])
    figure.set_layout_engine("constrained", h_pad=0.08)
    panels = figure.subplots(*shape, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for line, (label, row) in zip(panels.reshape(len(fields), wide), fields.items()):
        for axes, (title, field) in zip(line, row):
            shown = displayed(field.contribution).numpy()
            axes.imshow(shown, cmap="RdYlGn", vmin=0, vmax=1, interpolation="nearest")
            half, most = squares(field.contribution, (0.5, 0.99))
            told = f"half in {half.ratio:.0%} of the area, 99% in {most.ratio:.0%}"
            axes.set_title(f"{title}, {label}\n{told}", fontsize=7)
    return figure


def measure(
    grid: Grid,
    images: Mapping[str, Image.Image],
    output: Output,
    level: int = -1,
    thresholds: tuple[float, ...] = THRESHOLDS,
    source: str = "",
) -> Analysis:
    """Write picture, arrays and area ratios of a grid of subjects, rows by what their weights are."""
    fields: dict[str, list[tuple[str, Field]]] = {}
    table = []
    for label, subjects in grid.items():
        fields[label] = []
        for subject in subjects:
            batches = (subject.read(picture) for picture in tracked(list(images.values()), subject.name))
            field = mean_field(subject.network, batches, level)
            fields[label].append((subject.name, field))
            size = f"{subject.size[0]}x{subject.size[1]}"
            row: dict[str, Any] = {"model": subject.name, "weights": subject.weights, "size": size}
            for square in squares(field.contribution, thresholds):
                row[f"side {square.threshold:g}"] = square.side
                row[f"area {square.threshold:g}"] = square.ratio
            table.append(row)
    output.picture("Effective receptive field", draw(fields))
    output.arrays({f"{label}/{name}": f.contribution for label, row in fields.items() for name, f in row})
    output.table("Area ratios", table)
    first = next(iter(fields.values()))[0][1]
    left_out = f"; {first.skipped} left out" if first.skipped else ""
    return output.close(METHOD.format(level=level, used=first.used, source=source or "bundled", skipped=left_out))


def over_orders(subject: Subject, orders: list[str], named: bool = False) -> list[Subject]:
    """Return the subject with each of several scan orders, called by these alone or, if `named`, by its name too."""
    return [
        replace(
            subject,
            name=f"{subject.name}, {order}" if named else order,
            opened=replace(subject.opened, network=with_scan_order(subject.network, order)),
        )
        for order in orders
    ]


def grid_of(subjects: list[Subject], untrained: bool, seed: int) -> dict[str, list[Subject]]:
    """Return the rows of the picture: with `untrained`, those of random weights above those of the files."""
    rows: dict[str, list[Subject]] = {}
    if untrained:
        if not any(subject.trained for subject in subjects):
            raise UserError("--before-after: all weights are random; give --weights FILE, or --compare NAME=FILE")
        rows["random weights"] = [_fresh(subject, seed) for subject in subjects]
    trained = sum(subject.trained for subject in subjects)
    rows["random weights" if not trained else "trained" if trained == len(subjects) else "as given"] = subjects
    return rows


def _fresh(subject: Subject, seed: int) -> Subject:
    """Return the subject with random weights, drawn as the model draws them when it is built."""
    if isinstance(subject.network, VSSM | Vim):
        network = copy.deepcopy(subject.network)
        torch.manual_seed(seed)
        network.init_weights()
        return replace(subject, opened=replace(subject.opened, network=network), trained=False, seed=seed)
    return subject.untrained(seed)


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("erf", __doc__, compare=True)
    parser.add_argument("--level", type=int, default=-1, metavar="I", help="stage, from the end below 0 (default -1)")
    parser.add_argument("--before-after", action="store_true", help="a row of random weights above the given ones")
    parser.add_argument("--scan-orders", nargs="+", metavar="ORDER", help="columns of a VMamba along these scan orders")
    parser.add_argument(
        "--thresholds", nargs="+", type=float, default=list(THRESHOLDS), metavar="T", help="parts of the sum, 0 to 1"
    )
    arguments = parser.parse(argv)
    if not all(0 < t <= 1 for t in arguments.thresholds):
        raise UserError("--thresholds: give parts of the sum above 0 and up to 1")
    subjects = subjects_of(arguments)
    if arguments.scan_orders:
        alone = len(subjects) == 1
        subjects = [s for subject in subjects for s in over_orders(subject, arguments.scan_orders, named=not alone)]
    images = pictures(arguments.images, subjects[0].opened.mode, arguments.count)
    grid = grid_of(subjects, arguments.before_after, arguments.seed)
    output = Output(folder_of(arguments), "erf", "Effective receptive field")
    source = f"of {', '.join(map(str, arguments.images))}" if arguments.images else ""
    measure(grid, images, output, arguments.level, tuple(arguments.thresholds), source)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
