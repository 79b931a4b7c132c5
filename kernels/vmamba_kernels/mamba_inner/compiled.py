"""The inside of a Mamba block in float32 on the CPU: PyTorch's matrix products, the compiled convolution and scans.

The library knows `vmamba::_mamba_inner_scan`, the projection to step sizes, the scans and the gate on rows of tokens,
and its backward. It fills tensors that are allocated here; all of them lie token by token, so nothing is transposed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..causal_conv1d import compiled as convolution
from ..registration import library
from .reference import CHUNK, Gradients, Inputs, Kept, halves, kept_states

_OPTIONS = "int chunk, int block, int reverse, float scale"
CHANNELS = 16  # E is a multiple of it

library.define(
    "_mamba_inner_scan(Tensor u, Tensor x_dbl, Tensor dt_weight, Tensor A, Tensor D, Tensor delta_bias, Tensor z, "
    f"Tensor(a!) scanned, Tensor(b!) y, Tensor(c!)? states, {_OPTIONS}) -> ()"
)
library.define(
    "_mamba_inner_scan_backward(Tensor dout, Tensor u, Tensor x_dbl, Tensor dt_weight, Tensor A, Tensor D, "
    "Tensor delta_bias, Tensor z, Tensor scanned, Tensor states, Tensor(a!) dz, Tensor(b!) du, Tensor(c!) dx_dbl, "
    f"Tensor(d!) weights, {_OPTIONS}) -> ()"
)

missing = native.asked_once("_mamba_inner_scan")


def _block(tasks: int, channels: int) -> int:
    """The channels that are walked together: wide blocks share more, narrow ones make enough tasks of few images."""
    return 96 if tasks * -(-channels // 96) >= native.CPU_TASKS else 48


def _dense(i: Inputs) -> Inputs:
    """The inputs with dense weights, and with the channels of xz side by side."""
    xz = i.xz if i.xz.stride(2) == 1 else i.xz.contiguous()
    weights = [None if w is None else w.contiguous() for w in i[1:8]]
    return Inputs._make([xz, *weights, i.reverse, i.scale])


def _groups(rows: Tensor, groups: int) -> list[Tensor]:
    """The parts of dense rows [B, L, G*C] by direction, views [B*L, C]."""
    return list(rows.view(-1, rows.shape[2]).chunk(groups, dim=1))


def forward(i: Inputs, keep: bool) -> tuple[Tensor, Kept]:
    """As `reference.forward`."""
    i = _dense(i)
    x, z = halves(i.xz)
    batch, length, channels = x.shape
    groups, rows, _ = i.x_weight.shape
    u = convolution.forward(x.transpose(1, 2), i.conv_weight, i.conv_bias, i.reverse, True, False).transpose(1, 2)
    x_dbl, y = x.new_empty(batch, length, groups * rows), x.new_empty(x.shape)
    scanned = x.new_empty(x.shape) if keep else y
    states = None
    if keep:  # a slot that no chunk fills holds zeros
        allocate = x.new_zeros if length <= CHUNK else x.new_empty
        states = allocate((batch, kept_states(length), i.A.shape[1], groups * channels))
    if x.numel():
        for u_g, weight, to in zip(_groups(u, groups), i.x_weight, _groups(x_dbl, groups), strict=True):
            torch.mm(u_g, weight.T, out=to)
        options = (CHUNK, _block(batch, channels), convolution.bits(i.reverse), i.scale)
        weights = (i.dt_weight, i.A, i.D, i.delta_bias)
        torch.ops.vmamba._mamba_inner_scan(u, x_dbl, *weights, z, scanned, y, states, *options)
    return y, Kept(*(x.new_empty(0) for _ in range(4))) if states is None else Kept(u, x_dbl, scanned, states)


def backward(dy: Tensor, i: Inputs, kept: Kept) -> Gradients:
    """As `reference.backward`."""
    i = _dense(i)
    x, z = halves(i.xz)
    batch, length, channels = x.shape
    groups, rank, d_state = i.x_weight.shape[0], i.dt_weight.shape[2], i.A.shape[1]
    dxz, du = x.new_empty(i.xz.shape), torch.empty_like(kept.u)
    dx, dz = halves(dxz)
    if batch == 0:
        return Gradients(*(torch.zeros_like(t) if t is not None else x.new_empty(0) for t in i[:8]))
    batch_groups = min(batch, native.CPU_TASKS)
    block = _block(batch_groups * groups, channels)
    block_groups = min(-(-native.CPU_TASKS // (batch_groups * groups)), -(-channels // block))
    dx_dbl_parts = x.new_empty(block_groups, *kept.x_dbl.shape)
    parts = x.new_empty(batch_groups, groups, rank + d_state + 2, channels)
    dy = dy if dy.stride(2) == 1 else dy.contiguous()
    torch.ops.vmamba._mamba_inner_scan_backward(
        dy, kept.u, kept.x_dbl, i.dt_weight, i.A, i.D, i.delta_bias, z, kept.scanned, kept.states,
        dz, du, dx_dbl_parts, parts, CHUNK, block, convolution.bits(i.reverse), i.scale,
    )  # fmt: skip
    dx_dbl = dx_dbl_parts[0] if block_groups == 1 else dx_dbl_parts.sum(0)
    dx_weight = torch.empty_like(i.x_weight)
    each = (_groups(du, groups), _groups(dx_dbl, groups), _groups(kept.u, groups), i.x_weight, dx_weight)
    for du_g, dx_dbl_g, u_g, weight, dweight in zip(*each, strict=True):
        du_g.addmm_(dx_dbl_g, weight)
        torch.mm(dx_dbl_g.T, u_g, out=dweight)
    of_conv = convolution.backward_into(
        dx.transpose(1, 2), du.transpose(1, 2), x.transpose(1, 2), i.conv_weight, i.conv_bias, i.reverse, True, False
    )
    ddt, dA, dD, dbias = parts.sum(0).split([rank, d_state, 1, 1], dim=1)  # [G, .., E]
    ddt, dA = ddt.transpose(1, 2).contiguous(), dA.transpose(1, 2).reshape(i.A.shape)
    return Gradients(dxz, *of_conv, dx_weight, ddt, dA, dD.flatten(), dbias.flatten())
