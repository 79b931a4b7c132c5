"""Depthwise causal convolution along one axis, with SiLU: forward in time, backward in time, or both from one input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import constant_in_graphs, require
from ..companions import refuse_tangents
from .arguments import check, directions, grouped, widen
from .op import forward

__all__ = ["causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    reverse: bool | Sequence[bool] = False,
    flip_output: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Output y [B, G*C, L] in x's type, G <= 32 groups of filters over the channels, forward or backward in time.

    For channel c of group g, in float32 (float64 for float64 input), with x = 0 outside 0 <= t < L:
    y_t = act(bias + sum_j weight[j] * x_{t - (W-1-j)}), or x_{t + (W-1-j)} where the group is reversed. A reversed
    group is conv(flip(x)) flipped back, and with `flip_output` conv(flip(x)) itself, without a copy of x.

    Args:
        x: [B, C, L], read by every group, or [B, G*C, L], a part for each group; float32, bfloat16, float16 or
            float64, any strides. Storing the channels side by side (a transposed [B, L, C]) is fastest; the GPU
            kernels copy what has neither channels nor time side by side.
        weight: [C, W], [G, C, W], or [C, 1, W] as torch.nn.Conv1d has it, 1 <= W <= 8.
        bias: [G*C] or [G, C]. Weight and bias of any smaller type are used in float32.
        activation: None or "silu" ("swish").
        reverse: the direction of every group, or one for each of the G groups.
        flip_output: write the reversed groups in their own time, the last step of x first: what a scan that runs
            forward continues from. Otherwise y_t lies at t for every group.
        backend: None chooses by device; "reference", "cpu", "cuda" or "triton" insist.

    y is channel-last where x is. Differentiable once in every tensor; only the arguments are saved for the backward.
    Sums do not depend on threads or on the run. Works under torch.compile, torch.export and torch.vmap.

    Raises:
        ValueError: a wrong rank, shape, type or device, naming the argument and both shapes; an unknown activation
            or backend.
        RuntimeError: a backend that was asked for is absent, with the remedy.

    Source: Gu and Dao, "Mamba", 2023, section 3.4; both directions as in Zhu et al., "Vision Mamba", 2024, section 3.3.
    """
    filters, offsets, silu = check(x, weight, bias, activation, reverse)
    filters, offsets = widen("weight", filters, x), None if offsets is None else widen("bias", offsets, x)
    if backend is not None:
        backend = _required(backend, x.device.type)
        if x.dtype is torch.float64 and backend != "reference":
            raise ValueError(f"x: float64 {tuple(x.shape)} runs on backend 'reference' only, not on {backend!r}")
    flags = directions(reverse, grouped(x, weight, reverse)[0])
    refuse_tangents("causal_conv1d", x, weight, bias)
    return forward(x, filters, offsets, flags, silu, flip_output, backend or "")


@constant_in_graphs
def _required(backend: str, device: str) -> str:
    """The name of a backend that is there; a graph takes it as it was when it was traced."""
    return require("causal_conv1d", backend, device).name
