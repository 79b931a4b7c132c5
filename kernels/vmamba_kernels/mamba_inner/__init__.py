"""mamba_inner: the inside of a Mamba block, from the output of in_proj to the input of out_proj, as one operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import constant_in_graphs, require
from ..companions import refuse_tangents
from .arguments import check
from .op import backend_for, compiled_for, forward

__all__ = ["fuses", "mamba_inner"]


def mamba_inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_weight: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    *,
    reverse: Sequence[bool] = (False,),
    scale: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Output y [B, L, E], dense: what G directions over the tokens make of x, summed, scaled and gated by z.

    x and z are the halves of xz. Each direction g, which sees the tokens from the last to the first if it is reversed:
    u = silu(causal_conv1d(x)); (dt, B, C) = x_weight u; delta = dt_weight dt; y_g = selective_scan(u, delta, A, B, C,
    D, delta_bias), whose step sizes are softplus(delta + delta_bias). Then y = scale * sum_g y_g * silu(z).

    Args:
        xz: [B, L, 2E], L >= 1, the channels side by side or copied; float32 or float64, as all tensors.
        conv_weight: [G, E, W], 1 <= W <= 8. conv_bias: [G, E] or None.
        x_weight: [G, R+2N, E]. dt_weight: [G, E, R]. A: [G*E, N], 1 <= N <= 256. D, delta_bias: [G*E].
        reverse: the direction of each of the G <= 32 groups of weights.
        backend: None chooses by device, type and width; "cpu" (float32, E a multiple of 16) or "reference" insist.

    Differentiable once in every tensor. Saved for the backward are the arguments, u, x_dbl = x_weight u, the sum before
    the gate, and the states at every 32nd step. Sums over batch and time do not depend on the number of threads but in
    PyTorch's matrix products.

    Raises:
        ValueError: a wrong shape, type or device, or an unknown backend. RuntimeError: an absent backend.

    Source: Gu and Dao, "Mamba", 2023, figure 3; both directions: Zhu et al., "Vision Mamba", 2024, algorithm 1.
    """
    tensors = (xz, conv_weight, conv_bias, x_weight, dt_weight, A, D, delta_bias)
    check(*tensors, len(reverse))
    if backend is not None:
        backend = require("mamba_inner", backend, xz.device.type).name
        if backend != "reference" and not compiled_for(xz.dtype, conv_weight.shape[1]):
            raise ValueError(
                f"xz: {xz.dtype} {tuple(xz.shape)} runs on backend 'reference' only, not on {backend!r}, which takes "
                "float32 and halves of a multiple of 16 channels"
            )
    refuse_tangents("mamba_inner", *tensors)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return forward(*tensors, [int(r) for r in reverse], scale, keep, backend or "")[0]


@constant_in_graphs
def fuses(dtype: torch.dtype, device: str, channels: int) -> bool:
    """Whether a kernel of its own serves that type, device type and inner width: then a network gains by calling it."""
    return backend_for(dtype, device, channels) != "reference"
