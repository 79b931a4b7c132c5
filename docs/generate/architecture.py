"""The shapes of the models, read off the models: per stage for every one, per module for one."""

from __future__ import annotations

import re

from docs.generate.markdown import code, table
from docs.generate.meta_models import Step, meta_model, parameters, published_names, steps

SIZES = ((224, 224), (225, 180))


def stages() -> str:
    """Return the table of every model: blocks and output of each stage at 224 x 224."""
    rows = []
    for name in published_names():
        model = meta_model(name)
        sides = model.stage_sizes(224)
        cells = [f"{depth} x {code([dim, n, n])}" for depth, dim, n in zip(model.depths, model.dims, sides)]
        rows.append([code(name), *cells])
    return table(["name", "stage 0", "stage 1", "stage 2", "stage 3"], rows)


def walk(name: str = "vmamba_tiny_s1l8") -> str:
    """Return the table of a model's parts in the order in which they run, with their outputs at two sizes."""
    model = meta_model(name)
    runs = [_parts(steps(model, *size)) for size in SIZES]
    rows = []
    for key, (first, count) in runs[0].items():
        second, _ = runs[1][key]
        each = f"{first.parameters:,}" if count == 1 else f"{count} x {first.parameters:,}"
        rows.append([code(key), first.kind, _image(first.wrote), _image(second.wrote), each])
    rows.append(["all", "", "", "", f"{parameters(model):,}"])
    header = ["part", "class", *(f"output at {h} x {w}" for h, w in SIZES), "parameters"]
    return table(header, rows)


def block(name: str = "vmamba_tiny_s1l8") -> str:
    """Return the table of the modules of a model's first block in the order in which they run."""
    prefix = "layers.0.blocks.0."
    model = meta_model(name)
    rows = []
    for step in steps(model, *SIZES[0]):
        quiet = step.kind in ("Identity", "DropPath", "Dropout")
        if step.name.startswith(prefix) and not quiet:
            part = step.name.removeprefix(prefix)
            rows.append([code(part), step.kind, code(list(step.read)), code(list(step.wrote)), f"{step.parameters:,}"])
    return table(["module", "class", "reads", "writes", "parameters"], rows)


def mixer(name: str = "vmamba_tiny_s1l8") -> str:
    """Return the table of the parameters of a model's first token mixer."""
    model = meta_model(name)
    rows = ([code(key), code(list(value.shape))] for key, value in model.layers[0].blocks[0].op.named_parameters())
    return table(["parameter", "shape"], rows)


def _parts(ran: list[Step]) -> dict[str, tuple[Step, int]]:
    """The whole parts and how often each stands there: the layers of stem and classifier, blocks, downsamplings."""
    part = re.compile(r"patch_embed\.\d+|layers\.\d+\.blocks\.\d+|layers\.\d+\.downsample|classifier\.\w+")
    found: dict[str, tuple[Step, int]] = {}
    for step in ran:
        if part.fullmatch(step.name) and step.kind not in ("Identity", "Dropout"):
            name = re.sub(r"blocks\.\d+", "blocks.*", step.name)
            _, count = found.get(name, (step, 0))
            found[name] = (step, count + 1)
    return found


def _image(shape: tuple[int, ...]) -> str:
    """A shape without the batch axis."""
    return code(list(shape[1:]))


if __name__ == "__main__":
    print(stages(), walk(), block(), mixer(), sep="\n")
