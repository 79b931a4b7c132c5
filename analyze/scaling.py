"""Accuracy, speed, memory and FLOPs over the size of the image: ``python -m analyze.scaling --sizes 224 384 512``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analyze.command import folder_of, new_parser, one_line, subjects_of, tracked
from analyze.crossover import crossovers
from analyze.labelled import Labelled, labelled, top1
from analyze.output import Analysis, Output
from analyze.rates import Protocol, Size, measure, rows_of
from analyze.settings import setting
from analyze.subject import Subject
from analyze.throughput import MEMORY, demand_figures, draw
from vmamba.command_line import parse_size
from vmamba.counting import count_model
from vmamba.errors import OutOfMemory, UserError
from vmamba.host_memory import keep_freed_memory

SIZES = ("224", "288", "384", "512", "640", "768", "1024")
FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0)


def sizes_from(size: Size, count: int) -> list[Size]:
    """Return the first `count` of the multiples 1, 1.5, 2, 3, 4 of a size."""
    return [(round(size[0] * f), round(size[1] * f)) for f in FACTORS[:count]]


def run(
    subjects: Sequence[Subject],
    sizes: Sequence[Size],
    output: Output,
    batch: int = 1,
    turns: int = 5,
    data: Labelled | None = None,
    memory_kept: bool = False,
) -> Analysis:
    """Measure the subjects at every size, and write table and plot, and which of two is faster from which size on.

    Accuracy is measured where there are labelled images.
    """
    device = subjects[0].device
    rows: list[dict[str, Any]] = []
    protocol = Protocol(batch=batch, turns=turns, warm_up=1)
    for size in tracked(list(sizes), "scaling"):
        protocol = replace(protocol, sizes=(size,))
        present: dict[str, Subject] = {}
        for subject in subjects:
            try:
                present[subject.name] = subject.at(size)
            except UserError as error:
                label = f"{size[0]}x{size[1]}"
                rows.append({"model": subject.name, "size": label, "note": " ".join(str(error).split())[:160]})
        networks = {name: subject.network for name, subject in present.items()}
        for row in rows_of(measure(networks, protocol, device, subjects[0].channels), protocol):
            row["GFLOPs"] = round(count_model(networks[row["model"]], size).gflops, 6)
            if data is not None and row["images/s"] is not None:
                try:
                    row["top-1"], said = top1(present[row["model"]], data, batch)
                except OutOfMemory as error:
                    row["top-1"], said = None, str(error)
                row["note"] = "; ".join(word for word in (row["note"], said) if word)
            rows.append(row)
    demand_figures(rows)
    panels = [("images/s", "images per second"), ("peak MiB", "peak memory, MiB"), ("GFLOPs", "GFLOPs (MACs)")]
    if data is not None:
        panels.append(("top-1", "top-1 accuracy, %"))
    output.picture("Over the size of the image", draw(rows, "size", panels), vector=True)
    output.table("Sizes", rows)
    if crossed := crossovers(rows):
        output.table("Faster", crossed)
    accuracy = "" if data is None else f"; top-1 on {len(data.images)} images of {data.name}"
    kept = f"freed host memory {'kept' if memory_kept else 'returned'}"
    return output.close(f"{protocol.described()}; {MEMORY[device.type]}; {kept}{accuracy}. {setting(device)}")


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("scaling", __doc__, compare=True, images=False)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="HxW", help=f"default {' '.join(SIZES)}")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once (default 1)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of each network (default 3)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="measure top-1 on DIR/val/CLASS/*; 'digits' takes the bundled digits"
    )
    parser.add_argument("--count", type=int, metavar="N", help="at most so many of these images")
    arguments = parser.parse(argv)
    if arguments.batch < 1 or arguments.turns < 1:
        raise UserError("--batch, --turns: give at least 1")
    sizes = [parse_size(text) for text in arguments.sizes]
    arguments.size = arguments.size or arguments.sizes[0]
    subjects = subjects_of(arguments)
    data = None
    if arguments.data is not None:
        data = labelled(arguments.data, "val", subjects[0].opened.class_names, arguments.count)
    output = Output(folder_of(arguments), "scaling", "Over the size of the image")
    run(subjects, sizes, output, arguments.batch, arguments.turns, data, keep_freed_memory())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
