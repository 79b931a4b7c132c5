"""mlp: two linear layers and the exact GELU between them, of which only the first product is remembered."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import constant_in_graphs, require
from ..companions import check_companions, refuse_tangents
from .op import backend_for, forward

__all__ = ["fuses", "mlp"]


def _check(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> None:
    if x.dim() < 1 or weight1.dim() != 2 or weight1.shape[1] != x.shape[-1]:
        raise ValueError(f"weight1: expected [F, C] for x [..., C], got {tuple(weight1.shape)} and x {tuple(x.shape)}")
    if weight2.dim() != 2 or weight2.shape[1] != weight1.shape[0]:
        raise ValueError(
            f"weight2: expected [O, F] beside weight1 [F, C], got {tuple(weight2.shape)} and {tuple(weight1.shape)}"
        )
    for name, bias, weight in (("bias1", bias1, weight1), ("bias2", bias2, weight2)):
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{name}: expected [{weight.shape[0]}], got {tuple(bias.shape)} for x {tuple(x.shape)}")
    check_companions(x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2)


def mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, backend: str | None = None
) -> Tensor:
    """gelu(x weight1^T + bias1) weight2^T + bias2 with the exact GELU, a new contiguous tensor [..., O] of x's type.

    Args:
        x: [..., C], any floating type. weight1: [F, C], bias1: [F], weight2: [O, F], bias2: [O], of the same type.
        backend: None chooses by device and type; "cpu" (float32) or "reference" insist.

    Differentiable once in every tensor; saved for the backward are the arguments and the product of x and weight1, and
    not its activation, which is computed again. Error of the CPU's GELU below 1.5e-6 * (1 + |gelu|).

    Raises:
        ValueError: a wrong shape, type or device, or an unknown backend. RuntimeError: an absent backend.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, for the activation.
    """
    _check(x, weight1, bias1, weight2, bias2)
    if backend is not None:
        backend = require("mlp", backend, x.device.type).name
        if backend != "reference" and x.dtype is not torch.float32:
            raise ValueError(f"x: {x.dtype} {tuple(x.shape)} runs on backend 'reference' only, not on {backend!r}")
    tensors = (x, weight1, bias1, weight2, bias2)
    refuse_tangents("mlp", *tensors)
    keep_hidden = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return forward(*tensors, keep_hidden, backend or "")[0]


@constant_in_graphs
def fuses(dtype: torch.dtype, device: str) -> bool:
    """Whether a kernel of its own serves that type and device, so that a network gains by calling it."""
    return backend_for(dtype, device) != "reference"
