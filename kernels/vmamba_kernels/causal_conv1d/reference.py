"""The causal convolution in plain PyTorch: the sum over the taps and its gradient, written out.

In the own time of a group (mirrored if it is reversed), in float32 (float64 for float64 input), with x = 0 outside
0 <= s < L:

    p_s = bias + sum_j weight[j] * x_{s - (W-1-j)}          y_s = p_s, or silu(p_s) = p_s * sigmoid(p_s)

Shapes: B batch, G groups, C channels of a group, L length, W taps.
Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, section 3.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..selective_scan.layout import empty_sequence
from .layout import empty_output


def _shifted(x: Tensor, steps: int) -> Tensor:
    """x_{s - steps}: later by that many steps, with zeros where nothing was; earlier if negative."""
    length = x.shape[-1]
    if steps >= 0:
        return F.pad(x, (steps, 0))[..., :length]
    return F.pad(x, (0, -steps))[..., -steps:]


def _part(x: Tensor, group: int, groups: int, channels: int, mirror: bool, work: torch.dtype) -> Tensor:
    """What a group reads, widened, in its own time. x holds one part for all groups, or one for each."""
    shared = x.shape[1] == channels
    part = x if shared else x[:, group * channels : (group + 1) * channels]
    part = part.to(work)
    return part.flip(-1) if mirror else part


def _sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """p [B, C, L] of one group with weight [C, W]."""
    width = weight.shape[1]
    p = torch.zeros_like(x) if bias is None else bias[:, None].expand_as(x)
    for j in range(width):
        p = p + weight[:, j, None] * _shifted(x, width - 1 - j)
    return p


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: list[bool], silu: bool, flip_output: bool
) -> Tensor:
    """y [B, G*C, L] in x's type, from x [B, C, L] or [B, G*C, L], weight [G, C, W] and bias [G, C]."""
    groups, channels, _ = weight.shape
    out = empty_output(x, groups * channels)
    with torch.autocast(x.device.type, enabled=False):
        for g in range(groups):
            p = _sums(
                _part(x, g, groups, channels, reverse[g], weight.dtype), weight[g], None if bias is None else bias[g]
            )
            y = p * torch.sigmoid(p) if silu else p
            out[:, g * channels : (g + 1) * channels] = y.flip(-1) if reverse[g] and not flip_output else y
    return out


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: list[bool], silu: bool, flip_output: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (in its type), weight [G, C, W] and bias (empty if absent).

    With q_s the gradient of p_s, in the own time of each group:

        q_s       = dy_s * sigmoid(p_s) * (1 + p_s * (1 - sigmoid(p_s)))
        dx_s      = sum_j weight[j] * q_{s + (W-1-j)}               summed over the groups that read x
        dweight_j = sum over batch and time of q_s * x_{s - (W-1-j)}
        dbias     = sum over batch and time of q_s
    """
    groups, channels, width = weight.shape
    dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    dbias = weight.new_empty((0,) if bias is None else (groups, channels))
    dx_wide = torch.zeros(x.shape, dtype=weight.dtype, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        for g in range(groups):
            part = _part(x, g, groups, channels, reverse[g], weight.dtype)
            q = _part(dy, g, groups, channels, reverse[g] and not flip_output, weight.dtype)
            if silu:
                p = _sums(part, weight[g], None if bias is None else bias[g])
                s = torch.sigmoid(p)
                q = q * s * (1 + p * (1 - s))
            dpart = torch.zeros_like(part)
            for j in range(width):
                dpart = dpart + weight[g, :, j, None] * _shifted(q, j - (width - 1))
                dweight[g, :, j] = (q * _shifted(part, width - 1 - j)).sum((0, 2))
            if bias is not None:
                dbias[g] = q.sum((0, 2))
            dpart = dpart.flip(-1) if reverse[g] else dpart
            target = dx_wide if x.shape[1] == channels else dx_wide[:, g * channels : (g + 1) * channels]
            target += dpart
    return empty_sequence(x, x.dtype).copy_(dx_wide), dweight, dbias
