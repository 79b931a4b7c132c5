"""A model as a torch.export program, and as an AOTInductor package."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import UserError

MAX_SIDE = 4096


def export_program(model: nn.Module, example: Tensor, dynamic: bool = True) -> ExportedProgram:
    """The inference program of `model`, exported in eval mode, for images like `example` [B, C, H, W].

    With `dynamic` the program takes any B, and any H and W, whatever the example's, from the size at which each stage's
    map is 2x2 (33 for the published models: torch.export takes a size of 1 for a constant) to 4096; without, the
    example's sizes alone. The model's training mode is left as it was.

    Raises UserError for an example that is not [B, C, H, W].
    """
    if example.dim() != 4:
        raise UserError(f"example: expected images [B, C, H, W], got {tuple(example.shape)}")
    sizes: dict[int, Any] | None = None
    if dynamic:
        least = least_dynamic_side(model)
        sizes = {0: Dim("batch"), 2: Dim("height", min=least, max=MAX_SIDE), 3: Dim("width", min=least, max=MAX_SIDE)}
        example = _general(example, least)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=None if sizes is None else (sizes,))
    finally:
        model.train(training)


def least_dynamic_side(model: nn.Module) -> int:
    """The least height and width of images in a program of any size."""
    stage_sizes = getattr(model, "stage_sizes", lambda n: [n])
    return next(n for n in itertools.count(2) if min(stage_sizes(n)) >= 2)


def _general(example: Tensor, least: int) -> Tensor:
    """Images of the type and device of `example` whose sizes differ from one another and are no power of two.

    A size of 1 would be taken for a constant, and equal sizes for one number.
    """
    return example.new_zeros(2, example.shape[1], 2 * least + 3, 3 * least + 1)


def write_program(program: ExportedProgram, path: str | Path) -> None:
    """Write a program as a .pt2 archive, which `load_program` reads."""
    torch.export.save(program, path)


def load_program(path: str | Path) -> Callable[[Tensor], Any]:
    """The model of a .pt2 archive. This package registers the operators it calls."""
    return torch.export.load(path).module()


def write_package(program: ExportedProgram, path: str | Path) -> None:
    """Compile a program with AOTInductor and write the package, which `load_package` reads; needs a C++ compiler.

    Raises UserError for a name that does not end in .pt2, as torch demands.
    """
    if Path(path).suffix != ".pt2":
        raise UserError(f"out: an AOTInductor package is named NAME.pt2, not {Path(path).name}")
    from .packaged_operators import TWINS

    torch._inductor.aoti_compile_and_package(
        program.run_decompositions(dict(TWINS)),
        package_path=str(path),
        inductor_configs={"layout_optimization": False},  # it lays maps out as if all were channel-first
    )


def load_package(path: str | Path) -> Callable[[Tensor], Any]:
    """The compiled model of an AOTInductor package. This package registers the operators it calls."""
    importlib.import_module(f"{__package__}.packaged_operators")
    return torch._inductor.aoti_load_package(str(path))
