"""ss2d put together from its pieces: cross scan, step-size projection, selective scan, cross merge; and its gradient.

Everything between the scan and the merge is in float32 (float64 for float64 input), with the channels last:

    u      = cross_scan(x)                                     [B, L, K, C]
    p      = cross_scan(x_dbl, each group along its direction) [B, L, K, R + 2N] = [dt | B | C]
    delta  = dt_weight p_dt                                    [B, L, K, C]
    y      = cross_merge(selective_scan(u, softplus(delta + delta_bias), A, B, C, D))

The gradient walks the same line backwards; the merge is the transpose of the scan. B batch, L = H*W, K directions,
C channels, R rank, N states. Source: Liu et al., "VMamba", 2024, section 4.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..cross_scan import copies
from ..selective_scan.reference import SEQUENTIAL, Scan
from .arguments import Gradients, Inputs
from .layout import image_like, sizes


class _Sequences(NamedTuple):
    """The arguments of the selective scan, channel-last in memory, and the step-size inputs they came from."""

    u: Tensor  # [B, K*C, L]
    delta: Tensor  # [B, K*C, L]
    B: Tensor  # [B, K, N, L]
    C: Tensor  # [B, K, N, L]
    dt: Tensor  # [B, L, K, R]


def _channel_last(x: Tensor, channel_first: bool, work: torch.dtype) -> Tensor:
    return (x.permute(0, 2, 3, 1) if channel_first else x).to(work)


def _sequences(inputs: Inputs) -> _Sequences:
    x, x_dbl, dt_weight, A, _, _, order, channel_first = inputs
    d_state = A.shape[1]
    K, channels, rank = dt_weight.shape
    work = dt_weight.dtype
    x, x_dbl = _channel_last(x, channel_first, work), _channel_last(x_dbl, channel_first, work)
    u = copies.scan(x, order, False, False, False)  # [B, L, K, C]
    p = copies.scan(x_dbl.unflatten(3, (K, rank + 2 * d_state)), order, False, False, True)
    dt, b, c = p.split([rank, d_state, d_state], dim=-1)
    delta = torch.einsum("blkr,kcr->blkc", dt, dt_weight)
    return _Sequences(
        u.flatten(2).transpose(1, 2), delta.flatten(2).transpose(1, 2), b.permute(0, 2, 3, 1), c.permute(0, 2, 3, 1), dt
    )


def forward(
    inputs: Inputs, out_dtype: torch.dtype, save_states: bool, scan: Scan = SEQUENTIAL
) -> tuple[Tensor, Tensor]:
    """y in the layout of x, and the states at the starts of the chunks [B, chunks - 1, N, K*C]."""
    x, x_dbl, dt_weight, A, D, delta_bias, order, channel_first = inputs
    with torch.autocast(x.device.type, enabled=False):
        batch, channels, H, W = sizes(x, channel_first)
        s = _sequences(inputs)
        y, _, states = scan.forward(s.u, s.delta, A, s.B, s.C, D, delta_bias, True, A.dtype, save_states)
        y = y.transpose(1, 2).reshape(batch, H, W, len(dt_weight), channels)
        y = copies.merge(y, order, False, False, False)  # [B, L, C]
        return image_like(y.transpose(1, 2).to(out_dtype), x, channel_first), states


def backward(dy: Tensor, inputs: Inputs, states: Tensor, scan: Scan = SEQUENTIAL) -> Gradients:
    """The gradients of the inputs."""
    x, x_dbl, dt_weight, A, D, delta_bias, order, channel_first = inputs
    with torch.autocast(x.device.type, enabled=False):
        batch, channels, H, W = sizes(x, channel_first)
        K, _, rank = dt_weight.shape
        s = _sequences(inputs)
        dy = copies.scan(_channel_last(dy, channel_first, A.dtype), order, False, False, False)  # [B, L, K, C]
        dy = dy.flatten(2).transpose(1, 2)  # [B, K*C, L]
        du, ddelta, dA, dB, dC, dD, dbias = scan.backward(
            dy, None, s.u, s.delta, A, s.B, s.C, D, delta_bias, states, True
        )
        ddelta = ddelta.transpose(1, 2).unflatten(2, (K, channels))  # [B, L, K, C]
        d_dt_weight = torch.einsum("blkc,blkr->kcr", ddelta, s.dt)
        ddt = torch.einsum("blkc,kcr->blkr", ddelta, dt_weight)
        dp = torch.cat([ddt, dB.permute(0, 3, 1, 2), dC.permute(0, 3, 1, 2)], dim=-1)  # [B, L, K, R + 2N]
        dp = copies.merge(dp.unflatten(1, (H, W)), order, False, False, True).flatten(2)  # [B, L, J]
        du = copies.merge(du.transpose(1, 2).reshape(batch, H, W, K, channels), order, False, False, False)
        dx, dx_dbl = du.transpose(1, 2).to(x.dtype), dp.transpose(1, 2).to(x_dbl.dtype)
        return (
            image_like(dx, x, channel_first),
            image_like(dx_dbl, x_dbl, channel_first),
            d_dt_weight.contiguous(),
            dA,
            dD,
            dbias,
        )
