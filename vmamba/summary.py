"""Sizes, shapes and costs of a model: ``python -m vmamba.summary NAME|CONFIG --size 224x320``."""

from __future__ import annotations

import torch
from torch import nn

from vmamba.building import build
from vmamba.command_line import Parser, parse_size
from vmamba.counting import Activations, Count, activation_memory, count_model
from vmamba.errors import UserError, exit_on_user_error

_METHOD = """\
FLOPs are multiply-accumulates (MACs) of a forward in evaluation, by the rules of vmamba.counting.
Activation memory: every storage of a forward on fake tensors, followed from birth to death, in {dtype} with the
operators that this machine chooses for {device}, dropout off. Inference: the most alive at once. Training: what a
forward leaves alive for the backward. Not in it: weights, their gradients, the optimizer, and workspaces inside a
kernel."""

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")


def build_on_meta(target: str, size: tuple[int, int] | None = None) -> tuple[nn.Module, tuple[int, int]]:
    """Return the model that `target` names, without memory, and the image size; see `vmamba.building.build`."""
    with torch.device("meta"):
        return build(target, size)


def summary(model: nn.Module, size: int | tuple[int, int] = 224, batch: int = 1, device: str = "cpu") -> str:
    """Return a table of a model's parts (shape, parameters, FLOPs), its totals, and its activation memory.

    Nothing is computed: any model on any device; one on "meta" is taken to be on `device`, "cpu" or "cuda", which need
    not be there. Raises `UserError` where it does not run at that size.
    """
    count = count_model(model, size, batch)
    memory = activation_memory(model, size, batch, device)
    rows = [("input", _shape(count.image), "", "")]
    rest = [count.parameters, count.macs]
    for name in parts(model):
        parameters = sum(p.numel() for p in model.get_submodule(name).parameters())
        macs = count.within(name)
        rest = [rest[0] - parameters, rest[1] - macs]
        if count.shapes(name) and (parameters or macs):
            rows.append(
                (name, " ".join(map(_shape, count.shapes(name))), f"{parameters:,}", f"{macs / batch / 1e9:.6f}")
            )
    if any(n > 0 for n in rest):
        rows.append(("other", "", f"{rest[0]:,}", f"{rest[1] / batch / 1e9:.6f}"))
    table = _table([("part", "output", "parameters", "GFLOPs"), *rows])
    title = f"{type(model).__name__}, {batch} x {_shape(count.image[1:])}"
    return "\n".join([title, "", *table, "", *_totals(count, memory, model, device)])


def parts(model: nn.Module) -> list[str]:
    """Return the names of the layers that a summary shows: the children, opened where a stage of features lies inside.

    The stages are those of timm's ``feature_info``. Lists of layers, which are never called themselves, are opened too.
    """
    info = getattr(model, "feature_info", None)
    entries = info if isinstance(info, list) else getattr(info, "info", [])
    stages = [e["module"] for e in entries if isinstance(e, dict) and e.get("module")]

    def opened(name: str, module: nn.Module) -> list[str]:
        inside = any(stage.startswith(f"{name}.") for stage in stages)
        if not inside and not isinstance(module, nn.ModuleList):
            return [name]
        return [deeper for child, m in module.named_children() for deeper in opened(f"{name}.{child}", m)]

    return [name for child, module in model.named_children() for name in opened(child, module)] or [""]


def _totals(count: Count, memory: Activations, model: nn.Module, device: str) -> list[str]:
    first = next(model.parameters(), torch.empty(0))
    dtype, place = str(first.dtype).removeprefix("torch."), device if first.is_meta else first.device.type
    frozen = "" if count.trainable == count.parameters else f" ({count.trainable:,} trainable)"
    lines = [
        f"parameters             {count.parameters:,}{frozen}",
        f"GFLOPs per image       {count.gflops:.6f}",
        f"activations, inference {_megabytes(memory.inference)} for a batch of {count.batch}",
        f"activations, training  {_megabytes(memory.training)} for a batch of {count.batch}",
        "",
        *_METHOD.format(dtype=dtype, device=place).splitlines(),
    ]
    if count.uncovered:
        names = ", ".join(
            f"{name.partition('::')[2]} {n / count.batch / 1e9:.6f}" for name, n in count.uncovered.items()
        )
        lines.append(f"Of the GFLOPs, counted by operator outside any layer with a rule: {names}.")
    return lines


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.summary", description=__doc__)
    parser.add_argument(
        "model", metavar="NAME|CONFIG", help="a model of ours or of timm, or a yaml file of the trainer"
    )
    parser.add_argument("--size", metavar="HxW", help="image size, such as 224 or 224x320 (default: the model's own)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once (default 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and images (default float32)")
    parser.add_argument(
        "--device", choices=DEVICES, default="cpu", help="where to count activations; it need not be here (default cpu)"
    )
    arguments = parser.parse(argv)
    if arguments.batch < 1:
        raise UserError(f"--batch {arguments.batch}: give at least 1")
    model, size = build_on_meta(arguments.model, parse_size(arguments.size) if arguments.size else None)
    print(summary(model.to(getattr(torch, arguments.dtype)), size, arguments.batch, arguments.device))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
