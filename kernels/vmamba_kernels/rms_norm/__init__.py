"""rms_norm: the root mean square norm over the last axis, one pass forward and one backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import constant_in_graphs, require
from ..companions import check_companions, refuse_tangents
from .op import backend_for, forward

__all__ = ["fuses", "rms_norm"]


def _check(x: Tensor, weight: Tensor) -> None:
    if x.dim() < 1 or weight.shape != x.shape[-1:]:
        raise ValueError(f"weight: expected [D] for x [..., D], got {tuple(weight.shape)} and x {tuple(x.shape)}")
    check_companions(x, weight=weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float | None = None, *, backend: str | None = None) -> Tensor:
    """x / sqrt(mean of x^2 over the last axis + eps) * weight, a new contiguous tensor [..., D] of x's type.

    Args:
        x: [..., D], any floating type and strides. weight: [D], of the same type.
        eps: None is the distance from 1 to the next number of the arithmetic's type, as torch.nn.functional.rms_norm
            has it.
        backend: None chooses by device and type; "cpu" (float32) or "reference" insist.

    Differentiable once in both tensors; only they are saved for the backward. Arithmetic is float32, or float64 for
    float64; the relative error of the CPU's is below 1e-6 where dx does not cancel, as it can in rows of one to three
    numbers.

    Raises:
        ValueError: a wrong shape, type or device, or an unknown backend. RuntimeError: an absent backend.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    _check(x, weight)
    if backend is not None:
        backend = require("rms_norm", backend, x.device.type).name
        if backend != "reference" and x.dtype is not torch.float32:
            raise ValueError(f"x: {x.dtype} {tuple(x.shape)} runs on backend 'reference' only, not on {backend!r}")
    if eps is None:
        eps = torch.finfo(torch.float64 if x.dtype is torch.float64 else torch.float32).eps
    refuse_tangents("rms_norm", x, weight)
    return forward(x, weight, eps, backend or "")


@constant_in_graphs
def fuses(dtype: torch.dtype, device: str) -> bool:
    """Whether a kernel of its own serves that type and device, so that a network gains by calling it."""
    return backend_for(dtype, device) != "reference"
