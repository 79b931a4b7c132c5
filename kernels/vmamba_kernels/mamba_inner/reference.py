"""The inside of a Mamba block and its gradient as formulas, by the references of the convolution and the scan.

Shapes: B batch, G directions, E inner width, L tokens, W taps, R rank of the step sizes, N states, J = R + 2N.
Source: Gu and Dao, "Mamba", 2023, figure 3; both directions: Zhu et al., "Vision Mamba", 2024, algorithm 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..causal_conv1d import reference as convolution
from ..selective_scan import reference as scan


class Inputs(NamedTuple):
    """The tensors, and what is not a tensor."""

    xz: Tensor  # [B, L, 2E]
    conv_weight: Tensor  # [G, E, W]
    conv_bias: Tensor | None  # [G, E]
    x_weight: Tensor  # [G, J, E]
    dt_weight: Tensor  # [G, E, R]
    A: Tensor  # [G*E, N]
    D: Tensor  # [G*E]
    delta_bias: Tensor  # [G*E]
    reverse: list[bool]
    scale: float


class Kept(NamedTuple):
    """What the forward leaves for the backward, by the places of the tokens; empty where nothing is to be kept."""

    u: Tensor  # [B, L, G*E], the sequences that are scanned
    x_dbl: Tensor  # [B, L, G*J], their projections
    scanned: Tensor  # [B, L, E], the sum of the scans
    states: Tensor  # [B, S, N, G*E], what a backend remembers of the recurrence


class Gradients(NamedTuple):
    """Of the tensors of `Inputs`; that of an absent bias is empty."""

    xz: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    x_weight: Tensor
    dt_weight: Tensor
    A: Tensor
    D: Tensor
    delta_bias: Tensor


CHUNK = 32


def kept_states(length: int) -> int:
    """S: a state for each chunk of steps; at least 2, since graphs of a dynamic length take 1 for a constant."""
    return torch.sym_max((length + CHUNK - 1) // CHUNK, 2)


def halves(xz: Tensor) -> tuple[Tensor, Tensor]:
    """x and z, views [B, L, E]."""
    x, z = xz.chunk(2, dim=-1)
    return x, z


class _Direction(NamedTuple):
    """The arguments of the scan of one direction, in its own time."""

    u: Tensor  # [B, E, L]
    delta: Tensor  # [B, E, L]
    A: Tensor  # [E, N]
    B: Tensor  # [B, 1, N, L]
    C: Tensor  # [B, 1, N, L]
    D: Tensor  # [E]
    delta_bias: Tensor  # [E]


def _in_time(x: Tensor, reverse: bool) -> Tensor:
    """[B, L, ...] in the own time of a direction, or back from it."""
    return x.flip(1) if reverse else x


def _sections(i: Inputs) -> list[int]:
    states = i.A.shape[1]
    return [i.dt_weight.shape[2], states, states]


def _direction(i: Inputs, u: Tensor, x_dbl: Tensor, g: int) -> _Direction:
    E = i.dt_weight.shape[1]
    part = slice(g * E, (g + 1) * E)
    u = _in_time(u.unflatten(2, (-1, E))[:, :, g], i.reverse[g])
    x_dbl = _in_time(x_dbl.unflatten(2, (-1, i.x_weight.shape[1]))[:, :, g], i.reverse[g])
    dt, b, c = x_dbl.split(_sections(i), dim=-1)
    b, c = b.transpose(1, 2).unsqueeze(1), c.transpose(1, 2).unsqueeze(1)
    delta = (dt @ i.dt_weight[g].T).transpose(1, 2)
    return _Direction(u.transpose(1, 2), delta, i.A[part], b, c, i.D[part], i.delta_bias[part])


def forward(i: Inputs, keep: bool) -> tuple[Tensor, Kept]:
    """y [B, L, E] and what is kept of it; the states are computed again in the backward, and zeros here."""
    x, z = halves(i.xz)
    G, E, _ = i.dt_weight.shape
    u = convolution.forward(x.transpose(1, 2), i.conv_weight, i.conv_bias, i.reverse, True, False).transpose(1, 2)
    u = u.contiguous()
    x_dbl = torch.einsum("blge,gje->blgj", u.unflatten(2, (G, E)), i.x_weight).flatten(2).contiguous()
    scanned = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    for g in range(G):
        y, _, _ = scan.forward(*_direction(i, u, x_dbl, g), True, x.dtype, False)
        scanned += _in_time(y.transpose(1, 2), i.reverse[g])
    y = (i.scale * scanned * z * torch.sigmoid(z)).contiguous()
    if not keep:
        return y, Kept(*(x.new_empty(0) for _ in range(4)))
    batch, length, channels = u.shape
    return y, Kept(u, x_dbl, scanned, x.new_zeros(batch, kept_states(length), i.A.shape[1], channels))


def backward(dy: Tensor, i: Inputs, kept: Kept) -> Gradients:
    """With s = sigmoid(z) and t the sum of the scans: dt = scale dy z s, dz = scale dy t s (1 + z (1 - s)).

    From there the gradients of the scans, of the two projections, which add to that of u, and of the convolution.
    """
    x, z = halves(i.xz)
    s = torch.sigmoid(z)
    dz = i.scale * dy * kept.scanned * s * (1 + z * (1 - s))
    dscanned = i.scale * dy * z * s
    du, dx_dbl, weights = [], [], []
    for g, reverse in enumerate(i.reverse):
        given = _direction(i, kept.u, kept.x_dbl, g)
        states = scan.forward(*given, True, x.dtype, True)[2]
        dout = _in_time(dscanned, reverse).transpose(1, 2)
        du_g, ddelta, dA, dB, dC, dD, dbias = scan.backward(dout, None, *given, states, True)
        ddelta = _in_time(ddelta.transpose(1, 2), reverse)
        rows = [ddelta @ i.dt_weight[g], *(_in_time(t[:, 0].transpose(1, 2), reverse) for t in (dB, dC))]
        dt = kept.x_dbl.unflatten(2, (len(i.reverse), -1))[:, :, g, : i.dt_weight.shape[2]]
        du.append(_in_time(du_g.transpose(1, 2), reverse))
        dx_dbl.append(torch.cat(rows, dim=-1))
        weights.append((torch.einsum("ble,blr->er", ddelta, dt), dA, dD, dbias))
    dx_dbl_all = torch.stack(dx_dbl, dim=2)  # [B, L, G, J]
    du_all = torch.stack(du, dim=2) + torch.einsum("blgj,gje->blge", dx_dbl_all, i.x_weight)
    dx_weight = torch.einsum("blgj,blge->gje", dx_dbl_all, kept.u.unflatten(2, (len(i.reverse), -1)))
    dx, dconv_weight, dconv_bias = convolution.backward(
        du_all.flatten(2).transpose(1, 2), x.transpose(1, 2), i.conv_weight, i.conv_bias, i.reverse, True, False
    )
    ddt_weight, *rest = (list(parts) for parts in zip(*weights, strict=True))
    dA, dD, dbias = (torch.cat(parts) for parts in rest)
    dxz = torch.cat([dx.transpose(1, 2), dz], dim=-1)
    return Gradients(dxz, dconv_weight, dconv_bias, dx_weight.contiguous(), torch.stack(ddt_weight), dA, dD, dbias)
