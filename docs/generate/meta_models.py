"""The registered models on the meta device: shapes without numbers, so that every one of them fits and is fast."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import vmamba
from vmamba.models import VARIANTS, VSSM


@cache
def meta_model(name: str) -> VSSM:
    """Return the model of that name, without memory for its parameters."""
    with torch.device("meta"):
        model = vmamba.create_model(name)
    assert isinstance(model, VSSM)
    return model.eval()


def parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def published_names() -> dict[str, str]:
    """Return {name: the paper's name} of every registered model, in the order of their release."""
    first = {name: re.split(r",| of | with ", str(getattr(vmamba.models, name).__doc__))[0] for name in VARIANTS}
    return {name: f"{paper}, mamba2" if name.endswith("_m2") else paper for name, paper in first.items()}


@dataclass(frozen=True)
class Step:
    """A module that ran: its name in the model, its class, the shapes it read and wrote, and its parameters."""

    name: str
    kind: str
    read: tuple[int, ...]
    wrote: tuple[int, ...]
    parameters: int


def steps(model: VSSM, height: int, width: int) -> list[Step]:
    """Return every module with one input and one output that ran on an image, in the order in which they ended."""
    ran: list[Step] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ran.append(
                Step(name, type(module).__name__, tuple(inputs[0].shape), tuple(output.shape), parameters(module))
            )

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    with torch.no_grad():
        model(torch.empty(1, model.in_chans, height, width, device="meta"))
    for hook in hooks:
        hook.remove()
    return ran
