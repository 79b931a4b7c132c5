"""bias_gelu: the bias of a linear layer and the exact GELU after it, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import constant_in_graphs, require
from .op import backend_for, forward

__all__ = ["bias_gelu", "bias_gelu_in_place", "fuses"]


def _check(x: Tensor, bias: Tensor) -> None:
    if x.dim() < 1 or bias.dim() != 1 or bias.shape[0] != x.shape[-1]:
        raise ValueError(f"bias: expected [C] for x [..., C], got bias {tuple(bias.shape)} and x {tuple(x.shape)}")
    if not x.is_floating_point() or bias.dtype is not x.dtype:
        raise ValueError(f"bias: expected x's floating type, got {bias.dtype} {tuple(bias.shape)} for x {x.dtype}")
    if bias.device != x.device:
        raise ValueError(f"bias: is on {bias.device}, and x {tuple(x.shape)} on {x.device}")


def bias_gelu(x: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """gelu(x + bias), the exact GELU, as a new contiguous tensor of x's shape and type.

    Args:
        x: [..., C], any floating type. bias: [C], of the same type.
        backend: None chooses by device and type; "cpu" (float32) or "reference" insist.

    Differentiable once in both; only x and bias are saved. Where the plain layers would write x + bias and then its
    GELU, this reads x once and writes once. Error of the CPU kernel below 1.5e-6 * (1 + |y|).

    Raises:
        ValueError: a wrong shape, type or device, or an unknown backend. RuntimeError: an absent backend.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    _check(x, bias)
    if backend is not None:
        backend = require("bias_gelu", backend, x.device.type).name
        if backend != "reference" and x.dtype is not torch.float32:
            raise ValueError(f"x: {x.dtype} {tuple(x.shape)} runs on backend 'reference' only, not on {backend!r}")
    return forward(x, bias, backend or "")


def bias_gelu_in_place(x: Tensor, bias: Tensor) -> Tensor:
    """x itself, overwritten by gelu(x + bias); for contiguous float32 CPU tensors of which no gradient is wanted.

    Saves the allocation of the widest tensor of a network. Raises as `bias_gelu`; ValueError if a gradient is wanted.
    """
    _check(x, bias)
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        raise ValueError(f"x: {tuple(x.shape)} is wanted for a gradient and cannot be overwritten; use bias_gelu")
    if not x.is_contiguous() or not fuses(x.dtype, x.device.type):
        return x.copy_(forward(x, bias, ""))
    torch.ops.vmamba._bias_gelu_rows(x, bias.contiguous(), x)
    return x


@constant_in_graphs
def fuses(dtype: torch.dtype, device: str) -> bool:
    """Whether a kernel of its own serves that type and device, so that a network gains by calling it."""
    return backend_for(dtype, device) != "reference"
