"""depthwise_silu: the depthwise convolution of a channel-last image with its bias and SiLU, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import constant_in_graphs, require
from ..companions import check_companions, refuse_tangents
from .compiled import KERNEL
from .op import backend_for, forward

__all__ = ["depthwise_silu", "fuses"]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4:
        raise ValueError(f"x: expected [B, H, W, C], got {tuple(x.shape)}")
    channels, kernel = x.shape[3], weight.shape[-1] if weight.dim() == 4 else 0
    if kernel % 2 == 0 or weight.shape != (channels, 1, kernel, kernel):
        raise ValueError(f"weight: expected [C, 1, k, k], k odd, for x {tuple(x.shape)}, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias: expected [{channels}], got {tuple(bias.shape)} for x {tuple(x.shape)}")
    check_companions(x, weight=weight, bias=bias)


def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """silu(conv2d(x) + bias), one filter a channel, a new contiguous tensor [B, H, W, C] of x's type.

    The stride is 1, and x is 0 outside the image by (k - 1) / 2 positions on every side.

    Args:
        x: [B, H, W, C], any floating type and strides.
        weight: [C, 1, k, k] as torch.nn.Conv2d has it, k odd. bias: [C] or None. Both of x's type.
        backend: None chooses by device, type and k; "cpu" (float32 and k = 3) or "reference" insist.

    Differentiable once in every tensor; only the arguments are saved for the backward. Arithmetic is float32, or
    float64 for float64.

    Raises:
        ValueError: a wrong shape, type or device, or an unknown backend. RuntimeError: an absent backend.

    Source: Liu et al., "VMamba: Visual State Space Model", 2024, section 4.2, for the pair.
    """
    _check(x, weight, bias)
    if backend is not None:
        backend = require("depthwise_silu", backend, x.device.type).name
        if backend != "reference" and (x.dtype is not torch.float32 or weight.shape[2] != KERNEL):
            raise ValueError(
                f"x: {x.dtype} {tuple(x.shape)} with weight {tuple(weight.shape)} runs on backend 'reference' only, "
                f"not on {backend!r}, which takes float32 and k = {KERNEL}"
            )
    refuse_tangents("depthwise_silu", x, weight, bias)
    return forward(x, weight, bias, backend or "")


@constant_in_graphs
def fuses(dtype: torch.dtype, kernel: int, device: str) -> bool:
    """Whether a kernel of its own serves that type, kernel and device, so that a network gains by calling it."""
    return backend_for(dtype, kernel, device) != "reference"
