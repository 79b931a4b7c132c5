"""Images per second, latency, memory: ``python -m analyze.throughput --model NAME --compare NAME... --batch 1 32``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyze.command import folder_of, new_parser, one_line, subjects_of, tracked
from analyze.output import Analysis, Output
from analyze.rates import AMP, MODES, Protocol, Size, measure, rows_of
from analyze.settings import setting
from analyze.subject import Subject
from vmamba.command_line import parse_size
from vmamba.errors import UserError
from vmamba.figures import log_axis, new_figure
from vmamba.host_memory import keep_freed_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = {
    "cpu": "peak memory: all that PyTorch allocates in a step, by its profiler, with weights, optimizer and images",
    "cuda": "peak memory: the most that PyTorch's allocator held in a step, with weights, optimizer and images",
}
AXES = {"batch": "images at once", "size": "height of the image, pixels"}
LINES = ("-", "--", ":", "-.")


def draw(rows: Sequence[dict[str, Any]], along: str, figures: Sequence[tuple[str, str]]) -> Figure:
    """Return a figure of rows: a panel for each (column, label), a line for each model, mode and precision.

    A model has one colour, a mode and precision one kind of line. `along` is the column of the horizontal axis; of
    sizes and batches, where both vary, the other has lines of its own. Bars stand for the spread, where the rows have
    one.
    """
    timed = [row for row in rows if row.get(figures[0][0]) is not None]
    figure = new_figure(3.8 * len(figures), 4.0)
    across = "size" if along == "batch" else "batch"
    several = len({row.get(across) for row in timed}) > 1

    def line(row: dict[str, Any]) -> tuple[str, str]:
        amp = row.get("amp", "off")
        words = (row.get("mode", ""), "" if amp == "off" else amp, f"{across} {row[across]}" if several else "")
        return row["model"], ", ".join(word for word in words if word)

    keys = list(dict.fromkeys(map(line, timed)))
    models, kinds = (list(dict.fromkeys(words)) for words in zip(*keys))
    for axes, (column, label) in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures):
        for key in keys:
            own = [row for row in timed if line(row) == key and row.get(column) is not None]
            if not own:
                continue
            own.sort(key=lambda row: _number(row[along]))
            points = [(_number(row[along]), row[column]) for row in own]
            model, kind = key
            name = model if len(kinds) == 1 else f"{model}, {kind}"
            spread = None
            if column == "images/s":
                low = [row[column] - row["least"] for row in own]
                spread = [low, [row["most"] - row[column] for row in own]]
            color, style = f"C{models.index(model)}", LINES[kinds.index(kind) % len(LINES)]
            axes.errorbar(*zip(*points), yerr=spread, color=color, ls=style, marker="o", ms=4, capsize=2, label=name)
        axes.set(xlabel=AXES[along], ylabel=label)
        if column != "top-1":
            log_axis(axes, "y")
        log_axis(axes, "x", [_number(row[along]) for row in timed])
        axes.grid(alpha=0.3)
    if len(kinds) == 1:
        figure.suptitle(kinds[0], fontsize=10)
    drawn = figure.axes[0].get_legend_handles_labels()
    figure.legend(*drawn, loc="outside lower center", ncols=min(len(keys), len(figures)), fontsize=8, handlelength=4)
    return figure


def demand_figures(rows: Sequence[dict[str, Any]]) -> None:
    """Raise `UserError`, with the first reason, where no row has a figure."""
    if not any(row.get("images/s") for row in rows):
        raise UserError(rows[0]["note"])


def _number(value: Any) -> float:
    """A batch, or the height of the first size of "224x320, 256x256"."""
    return float(value) if isinstance(value, int | float) else float(str(value).split("x")[0])


def run(
    subjects: Sequence[Subject],
    protocols: Sequence[Protocol],
    output: Output,
    memory_kept: bool = False,
    with_memory: bool = True,
) -> Analysis:
    """Measure all subjects by each protocol, and write table and plot."""
    device = subjects[0].device
    networks = {subject.name: subject.network for subject in subjects}
    rows: list[dict[str, Any]] = []
    for protocol in tracked(list(protocols), "throughput"):
        found = measure(networks, protocol, device, subjects[0].channels, with_memory=with_memory)
        rows += rows_of(found, protocol)
    demand_figures(rows)
    along = "size" if len({p.batch for p in protocols}) == 1 < len({p.sizes for p in protocols}) else "batch"
    panels = [("images/s", "images per second"), ("ms a step", "latency of a step, ms")]
    panels += [("peak MiB", "peak memory, MiB")] if with_memory else []
    output.picture("Throughput, latency and memory", draw(rows, along, panels), vector=True)
    output.table("Throughput", rows)
    kept = "kept" if memory_kept else "returned"
    told = " Or: ".join(dict.fromkeys(protocol.described() for protocol in protocols))
    return output.close(f"{told}; {MEMORY[device.type]}; freed host memory {kept}. {setting(device)}")


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("throughput", __doc__, compare=True, images=False)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], metavar="N", help="batches (default 1 8)")
    parser.add_argument("--sizes", nargs="+", metavar="HxW", help="sizes of the images (default: that of --size)")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=["inference"], metavar="MODE", help=", ".join(MODES)
    )
    parser.add_argument("--amp", nargs="+", choices=AMP, default=["off"], metavar="TYPE", help=", ".join(AMP))
    parser.add_argument(
        "--mixed-sizes", nargs="+", default=[], metavar="HxW", help="training steps take these sizes in turn"
    )
    parser.add_argument("--channels-last", action="store_true", help="weights and images stored channels last")
    parser.add_argument("--compile", metavar="MODE", help="torch.compile with this mode, such as default")
    parser.add_argument("--warm-up", type=int, default=2, metavar="N", help="steps before the clock (default 2)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="of each network (default 5)")
    parser.add_argument("--steps", type=int, default=1, metavar="N", help="in one turn (default 1)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure the peak memory")
    arguments = parser.parse(argv)
    for flag in ("batch", "warm-up", "turns", "steps"):
        values = getattr(arguments, flag.replace("-", "_"))
        if min(values if isinstance(values, list) else [values]) < 1:
            raise UserError(f"--{flag}: give at least 1")
    subjects = subjects_of(arguments)
    sizes = [parse_size(text) for text in arguments.sizes] if arguments.sizes else [subjects[0].size]
    mixed = tuple(parse_size(text) for text in arguments.mixed_sizes)
    output = Output(folder_of(arguments), "throughput", "Throughput, latency and memory")
    run(subjects, protocols_of(arguments, sizes, mixed), output, keep_freed_memory(), not arguments.no_memory)
    return 0


def protocols_of(arguments: Any, sizes: Sequence[Size], mixed: tuple[Size, ...]) -> list[Protocol]:
    """Return a protocol for each mode, precision, size and batch; training takes `mixed` sizes in turn if there are."""
    found = []
    for mode, amp in itertools.product(arguments.modes, arguments.amp):
        in_turn: list[tuple[Size, ...]] = [mixed] if mixed and mode != "inference" else [(size,) for size in sizes]
        for each, batch in itertools.product(in_turn, arguments.batch):
            steps = -(-arguments.steps // len(each)) * len(each)  # whole rounds of the sizes
            layout = "channels_last" if arguments.channels_last else "contiguous"
            found.append(
                Protocol(mode, batch, each, amp, layout, arguments.compile, arguments.warm_up, arguments.turns, steps)
            )
    return found


if __name__ == "__main__":
    raise SystemExit(main())
