"""The arguments of the scan operators in one form, float64: M lines, K sequences, J decays of P channels, N states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import causal_conv1d, scan_order


@dataclass
class Operands:
    """What a scan is computed from, in the order of its steps; see `analyze.scans.Scan`."""

    u: Tensor  # [M, K, J, P, L]
    delta: Tensor  # [M, K, J, L]
    A: Tensor  # [K, J, N or 1]
    B: Tensor  # [M, K, N, L]
    C: Tensor  # [M, K, N, L]
    D: Tensor | None  # [K, J, P]
    # Of a pooled scan: the tokens [M, K, J, P, L, c] of each step, their places [L, c], and which sequences go back.
    tokens: Tensor | None = None
    pools: Tensor | None = None
    reverse: tuple[bool, ...] = ()
    average: bool = False


def _step_sizes(delta: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    """delta [..., J, L] plus its bias [J], after softplus."""
    delta = delta.double() if bias is None else delta.double() + bias.double()[:, None]
    return F.softplus(delta) if softplus else delta


def of_selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, bias: Any, softplus: bool, *_: Any
) -> Operands:
    """Return the operands of `vmamba_kernels.selective_scan`; images of the batch are lines."""
    groups, channels = B.shape[1], u.shape[1]
    steps = _step_sizes(delta, bias, softplus).repeat_interleave(channels // delta.shape[1], dim=1)
    return Operands(
        u.double().unflatten(1, (groups, -1))[:, :, :, None],
        steps.unflatten(1, (groups, -1)),
        A.double().unflatten(0, (groups, -1)),
        B.double(),
        C.double(),
        None if D is None else D.double().view(groups, -1, 1),
    )


def of_mamba_inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Any,
    x_weight: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    bias: Tensor,
    reverse: Sequence[bool],
    *_: Any,
) -> Operands:
    """Return the operands of `vmamba_kernels.mamba_inner`, the reversed directions in the order in which they walk."""
    groups, rank, states = len(reverse), dt_weight.shape[2], A.shape[1]
    x, offsets = xz.double().chunk(2, dim=-1)[0].mT, None if conv_bias is None else conv_bias.double()
    u = causal_conv1d(x, conv_weight.double(), offsets, "silu", reverse=[bool(r) for r in reverse], flip_output=True)
    projected = torch.einsum("bgel,gje->bgjl", u.unflatten(1, (groups, -1)), x_weight.double())
    dt, b, c = projected.split([rank, states, states], dim=2)
    delta = torch.einsum("bgrl,ger->bgel", dt, dt_weight.double())
    return of_selective_scan(u, delta.flatten(1, 2), A, b, c, D, bias, True)


def of_ss2d(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Any,
    bias: Any,
    order: str,
    channel_first: bool,
    *_: Any,
) -> Operands:
    """Return the operands of `vmamba_kernels.ss2d`."""
    if channel_first:
        x, x_dbl = x.permute(0, 2, 3, 1), x_dbl.permute(0, 2, 3, 1)
    groups, rank = len(dt_weight), dt_weight.shape[2]
    states = A.shape[1]
    places = scan_order(order, x.shape[1], x.shape[2], device=x.device)  # [K, L]
    u = x.double().flatten(1, 2)[:, places].permute(0, 1, 3, 2)  # [B, K, I, L]
    projected = x_dbl.double().flatten(1, 2).unflatten(-1, (groups, -1))  # [B, L, K, R + 2N]
    projected = torch.stack([projected[:, places[k], k] for k in range(groups)], dim=1)  # [B, K, L, R + 2N]
    dt, b, c = projected.split([rank, states, states], dim=-1)
    delta = torch.einsum("bklr,kir->bkil", dt, dt_weight.double())
    b, c = b.transpose(2, 3), c.transpose(2, 3)
    return of_selective_scan(u.flatten(1, 2), delta.flatten(1, 2), A, b, c, D, bias, True)


def of_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Any,
    bias: Any,
    initial: Any,
    softplus: bool,
    low: float | None,
    high: float | None,
    *_: Any,
) -> Operands:
    """Return the operands of `vmamba_kernels.ssd`, whose heads are decays of P channels; no initial states."""
    if initial is not None:
        raise ValueError("initial_states: a scan that goes on from another has no matrix of its own")
    groups = B.shape[2]
    delta = _step_sizes(dt.transpose(1, 2), bias, softplus)  # [B, H, L]
    delta = delta.clamp(-math.inf if low is None else low, math.inf if high is None else high)
    return Operands(
        x.double().permute(0, 2, 3, 1).unflatten(1, (groups, -1)),
        delta.unflatten(1, (groups, -1)),
        A.double().view(groups, -1, 1),
        B.double().permute(0, 2, 3, 1),
        C.double().permute(0, 2, 3, 1),
        None if D is None else D.double().view(groups, -1, x.shape[3]),
    )


def of_pooled_scan(
    u_full: Tensor,
    u_pooled: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Any,
    bias: Any,
    tokens: Sequence[int],
    reverse: Sequence[bool],
    softplus: bool,
    average: bool,
    *_: Any,
) -> Operands:
    """Return the operands of `vmamba_kernels.pooled_scan`, the reversed groups in the order in which they walk."""
    outer, first, inner, second = (int(n) for n in tokens)
    places = torch.arange(outer * first * inner * second, device=u_full.device).view(outer, first, inner, second)
    pools = places.permute(0, 2, 1, 3).reshape(outer * inner, first * second)  # [P, c]
    found = of_selective_scan(u_pooled, delta, A, B, C, D, bias, softplus)
    members = u_full.double()[..., pools][:, :, :, None]  # [B, K, D, 1, P, c]

    def walked(tensor: Tensor, axis: int = -1) -> Tensor:
        return torch.stack([t.flip(axis) if back else t for t, back in zip(tensor.unbind(1), reverse)], dim=1)

    found.u, found.delta, found.B, found.C = (walked(t) for t in (found.u, found.delta, found.B, found.C))
    found.tokens, found.pools, found.reverse, found.average = walked(members, -2), pools, tuple(reverse), average
    return found
