"""FLOPs and parameters, a row a layer, a stage and a size: ``python -m analyze.flops --model NAME --sizes 224 512``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from analyze.command import folder_of, new_parser, one_line, size_of, subject_of, tracked
from analyze.output import Analysis, Output
from analyze.subject import DEFAULT, Size
from vmamba.command_line import parse_size
from vmamba.counting import Count, count_model
from vmamba.devices import choose_device
from vmamba.errors import UserError
from vmamba.figures import log_axis, new_figure
from vmamba.summary import build_on_meta, parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD = (
    "Multiply-accumulates of a forward in evaluation, one image, counted layer by layer on tensors without memory by "
    "the rules of vmamba.counting: convolutions, linear layers and products their MACs, LayerNorm 5 an element, "
    "average pooling 1, a scan 9 a step, channel and state and 1 a step and channel for its skip; activations and "
    "sums nothing."
)


def stage_rows(model: nn.Module, count: Count) -> list[dict[str, Any]]:
    """Return a row for each part of a model, as `vmamba.summary` shows them, and one for what lies outside of them."""
    rows: list[dict[str, Any]] = []
    rest = [count.parameters, count.macs]
    for name in parts(model):
        parameters = sum(p.numel() for p in model.get_submodule(name).parameters())
        macs = count.within(name)
        rest = [rest[0] - parameters, rest[1] - macs]
        if parameters or macs:
            rows.append({"part": name, "parameters": parameters, "GFLOPs": macs / count.batch / 1e9})
    if any(n > 0 for n in rest):
        rows.append({"part": "other", "parameters": rest[0], "GFLOPs": rest[1] / count.batch / 1e9})
    for row in rows:
        row["share"] = row["GFLOPs"] / count.gflops if count.macs else 0.0
    return rows


def layer_rows(model: nn.Module, count: Count) -> list[dict[str, Any]]:
    """Return a row for each layer that has FLOPs of its own."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    return [
        {
            "layer": name or "(model)",
            "kind": kinds[name],
            "output": " ".join("x".join(map(str, shape[1:])) for shape in count.outputs.get(name, ())),
            "MACs": macs // count.batch,
        }
        for name, macs in count.layers.items()
        if macs
    ]


def draw(parts_of: dict[str, list[dict[str, Any]]], sizes: Sequence[dict[str, Any]]) -> Figure:
    """Return a figure: the parts of each model at its first size, stacked; and every model over the sizes."""
    figure = new_figure(11, 3.8)
    stacked, grows = figure.subplots(1, 2)
    for place, rows in enumerate(parts_of.values()):
        start = 0.0
        for number, row in enumerate(rows):
            stacked.barh([place], [row["GFLOPs"]], left=start, color=f"C{number % 10}")
            if row["share"] > 0.01 * len(row["part"]):  # there is room for its name
                stacked.text(start + row["GFLOPs"] / 2, place, row["part"], ha="center", va="center", fontsize=6)
            start += row["GFLOPs"]
    stacked.set_yticks(range(len(parts_of)), list(parts_of), fontsize=7)
    stacked.set_xlabel("GFLOPs (MACs)")
    for name in parts_of:
        points = [(row["pixels"] ** 0.5, row["GFLOPs"]) for row in sizes if row["model"] == name]
        grows.plot(*zip(*points), marker="o", label=name)
    grows.set(xlabel="side of the image (root of its pixels)", ylabel="GFLOPs (MACs)")
    log_axis(grows, "x", [round(row["pixels"] ** 0.5) for row in sizes])
    log_axis(grows, "y")
    grows.grid(alpha=0.3, which="both")
    grows.legend(fontsize=7)
    return figure


def run(targets: Sequence[str], sizes: Sequence[Size | None], output: Output) -> Analysis:
    """Write the counts of models, names or yaml files, over sizes; None is a model's own size."""
    table: list[dict[str, Any]] = []
    first: dict[str, list[dict[str, Any]]] = {}
    layers: dict[str, list[dict[str, Any]]] = {}
    for target in tracked(list(targets), "flops"):
        for size in sizes:
            model, found = build_on_meta(target, size)
            count = count_model(model, found)
            label = f"{found[0]}x{found[1]}"
            row = {"model": target, "size": label, "parameters": count.parameters, "GFLOPs": round(count.gflops, 6)}
            table.append(row | {"pixels": found[0] * found[1]})
            if target not in first:
                first[target] = stage_rows(model, count)
                layers[f"{target} at {label}"] = layer_rows(model, count)
    return _written(first, table, layers, output)


def run_network(name: str, network: nn.Module, sizes: Sequence[Size], output: Output) -> Analysis:
    """Write the counts of one network at hand over sizes."""
    table = []
    counts = {size: count_model(network, size) for size in sizes}
    for (height, width), count in counts.items():
        row = {"model": name, "size": f"{height}x{width}", "parameters": count.parameters}
        table.append(row | {"GFLOPs": round(count.gflops, 6), "pixels": height * width})
    first = counts[sizes[0]]
    layers = {f"{name} at {table[0]['size']}": layer_rows(network, first)}
    return _written({name: stage_rows(network, first)}, table, layers, output)


def _written(
    stages: dict[str, list[dict[str, Any]]],
    table: list[dict[str, Any]],
    layers: dict[str, list[dict[str, Any]]],
    output: Output,
) -> Analysis:
    output.picture("FLOPs by part, and over the size of the image", draw(stages, table), vector=True)
    output.table("Models", table)
    for name, rows in stages.items():
        output.table(f"Parts of {name}", rows)
    for name, rows in layers.items():
        output.table(f"Layers of {name}", rows, printed=False)
    return output.close(METHOD)


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("flops", __doc__, compare=True, images=False)
    parser.add_argument("--sizes", nargs="+", metavar="HxW", help="sizes of the images (default: that of --size)")
    arguments = parser.parse(argv)
    sizes: list[Size | None] = (
        [parse_size(text) for text in arguments.sizes] if arguments.sizes else [size_of(arguments)]
    )
    if any("=" in text for text in arguments.compare):
        raise UserError("--compare NAME=FILE: FLOPs are those of the model, whatever its weights; give NAME alone")
    if arguments.weights is not None and arguments.compare:
        raise UserError("--compare: name models by --model and --compare alone, without --weights")
    choose_device(arguments.device)  # refused where it is no device, though a count needs none
    output = Output(folder_of(arguments), "flops", "FLOPs and parameters")
    if arguments.weights is not None:
        subject = subject_of(arguments)
        with torch.no_grad():
            run_network(subject.name, subject.network, [size or subject.size for size in sizes], output)
        return 0
    names = [arguments.model or DEFAULT, *arguments.compare]
    run(names, sizes, output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
