"""The selective scan in plain PyTorch: the recurrence and its gradient, written out.

For channel c of group k, with all arithmetic in float32 (float64 for float64 input):

    dt_l = softplus(delta_l + delta_bias)
    h_l  = exp(dt_l * A) * h_{l-1} + dt_l * B_l * u_l          h_0 = 0, N states
    y_l  = sum_n C_l[n] * h_l[n] + D * u_l

Time is cut into chunks. Only the state at the start of each chunk is kept; the states inside a chunk are computed
again when the backward needs them, so memory is O(B*KD*L) and not O(B*KD*L*N).

Shapes: B batch, K groups, D channels of a group, KD = K*D, L length, N states, T steps of one chunk.
Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import chunk_length, empty_projection, empty_sequence, stored_states

SOFTPLUS_THRESHOLD = 20.0


class _Chunk(NamedTuple):
    """The inputs of the steps [start, stop), widened and time first."""

    u: Tensor  # [T, B, K, D, 1]
    raw: Tensor  # [T, B, K, D, 1]  delta + delta_bias
    dt: Tensor  # [T, B, K, D, 1]  softplus(raw)
    B: Tensor  # [T, B, K, 1, N]
    C: Tensor  # [T, B, K, 1, N]
    decay: Tensor  # [T, B, K, D, N]  exp(dt * A)


def _chunk(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    start: int,
    stop: int,
) -> _Chunk:
    work = A.dtype
    batch, channels, _ = u.shape
    groups = B.shape[1]
    shape = (stop - start, batch, groups, channels // groups, 1)
    raw = delta[:, :, start:stop].to(work)
    if delta_bias is not None:
        raw = raw + delta_bias[:, None]
    raw = raw.repeat_interleave(channels // delta.shape[1], dim=1)
    raw = raw.permute(2, 0, 1).reshape(shape)
    dt = F.softplus(raw, threshold=SOFTPLUS_THRESHOLD) if delta_softplus else raw
    return _Chunk(
        u=u[:, :, start:stop].to(work).permute(2, 0, 1).reshape(shape),
        raw=raw,
        dt=dt,
        B=B[..., start:stop].to(work).permute(3, 0, 1, 2).unsqueeze(3),
        C=C[..., start:stop].to(work).permute(3, 0, 1, 2).unsqueeze(3),
        decay=torch.exp(dt * A),
    )


def _states(chunk: _Chunk, h: Tensor) -> Tensor:
    """The states [T, B, K, D, N] after each step of a chunk that starts from h [B, K, D, N]."""
    drive = chunk.dt * chunk.u * chunk.B
    states = []
    for decay_l, drive_l in zip(chunk.decay, drive, strict=True):
        h = torch.addcmul(drive_l, decay_l, h)
        states.append(h)
    return torch.stack(states)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B, KD, L], last state [B, KD, N] and the states at the starts of the chunks [B, chunks - 1, N, KD]."""
    batch, channels, length = u.shape
    groups, d_state = B.shape[1:3]
    chunk_size = chunk_length(d_state, u.device.type)
    with torch.autocast(u.device.type, enabled=False):
        A = A.view(groups, channels // groups, d_state)
        out = empty_sequence(u, out_dtype)
        h = A.new_zeros(batch, *A.shape)
        kept = stored_states(length, d_state, u.device.type) if save_states else 0
        states = A.new_empty(batch, kept, d_state, channels)
        for start in range(0, length, chunk_size):
            stop = min(start + chunk_size, length)
            if start and kept:
                states[:, start // chunk_size - 1] = h.flatten(1, 2).transpose(1, 2)
            chunk = _chunk(u, delta, A, B, C, delta_bias, delta_softplus, start, stop)
            inside = _states(chunk, h)
            y = (inside * chunk.C).sum(-1)
            if D is not None:
                y = y + chunk.u[..., 0] * D.view(groups, -1)
            out[:, :, start:stop] = y.flatten(2).permute(1, 2, 0)
            h = inside[-1]
    return out, h.flatten(1, 2).clone(), states


def backward(
    dout: Tensor,
    dlast_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C, D, delta_bias (the last two empty if absent), in the types of the arguments.

    With g_l the gradient of the state h_l, walking back in time:

        g_l      = C_l * dy_l + exp(dt_{l+1} * A) * g_{l+1}
        dC_l     = sum over the channels of the group of dy_l * h_l
        dB_l     = sum over the channels of the group of g_l * dt_l * u_l
        du_l     = sum_n g_l * dt_l * B_l + D * dy_l
        d(dt)_l  = sum_n g_l * (B_l * u_l + A * exp(dt_l * A) * h_{l-1})
        dA       = sum over time of g_l * dt_l * exp(dt_l * A) * h_{l-1}
    """
    batch, channels, length = u.shape
    groups, d_state = B.shape[1:3]
    per_delta = channels // delta.shape[1]
    chunk_size = chunk_length(d_state, u.device.type)
    with torch.autocast(u.device.type, enabled=False):
        A_flat, A = A, A.view(groups, channels // groups, d_state)
        work = A.dtype
        du, ddelta = empty_sequence(u, u.dtype), empty_sequence(delta, delta.dtype)
        dB, dC = empty_projection(B), empty_projection(C)
        dA = torch.zeros_like(A)
        dD = A.new_zeros(0 if D is None else channels)
        ddelta_bias = A.new_zeros(0 if delta_bias is None else delta.shape[1])
        g = A.new_zeros(batch, *A.shape) if dlast_state is None else dlast_state.to(work).view(batch, *A.shape)
        for start in reversed(range(0, length, chunk_size)):
            stop = min(start + chunk_size, length)
            chunk = _chunk(u, delta, A, B, C, delta_bias, delta_softplus, start, stop)
            if start:
                before = states[:, start // chunk_size - 1].transpose(1, 2).reshape(batch, *A.shape)
            else:
                before = A.new_zeros(batch, *A.shape)
            inside = _states(chunk, before)
            previous = torch.cat([before[None], inside[:-1]])
            dy = dout[:, :, start:stop].to(work).permute(2, 0, 1).reshape(chunk.u.shape)

            pushed = chunk.C * dy
            grads = []
            for decay_l, pushed_l in zip(reversed(chunk.decay), reversed(pushed), strict=True):
                g_l = pushed_l + g
                grads.append(g_l)
                g = decay_l * g_l
            g_h = torch.stack(grads[::-1])  # [T, B, K, D, N]

            dC[..., start:stop] = (dy * inside).sum(3).permute(1, 2, 3, 0)
            dB[..., start:stop] = (g_h * (chunk.dt * chunk.u)).sum(3).permute(1, 2, 3, 0)
            through_B = (g_h * chunk.B).sum(-1, keepdim=True)
            g_decay = g_h * chunk.decay * previous
            du_l = through_B * chunk.dt
            if D is not None:
                du_l = du_l + dy * D.view(groups, -1, 1)
                dD += (dy * chunk.u).sum((0, 1)).flatten()
            dA += (g_decay * chunk.dt).sum((0, 1))
            draw = through_B * chunk.u + (g_decay * A).sum(-1, keepdim=True)
            if delta_softplus:
                draw = draw * torch.where(chunk.raw > SOFTPLUS_THRESHOLD, 1.0, torch.sigmoid(chunk.raw))
            draw = draw.reshape(stop - start, batch, delta.shape[1], per_delta).sum(-1)
            if delta_bias is not None:
                ddelta_bias += draw.sum((0, 1))
            du[:, :, start:stop] = du_l.flatten(2).permute(1, 2, 0)
            ddelta[:, :, start:stop] = draw.permute(1, 2, 0)
    return du, ddelta, dA.view_as(A_flat), dB, dC, dD, ddelta_bias


class Scan(NamedTuple):
    """An implementation of the scan, for what is put together around one: functions with its ops' signatures."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


SEQUENTIAL = Scan(forward, backward)
