"""The state-space dual scan in plain PyTorch: the recurrence, step by step, and its gradient, written out.

For head h of group g, with all arithmetic in float32 (float64 for float64 input):

    s_t = clamp(softplus(dt_t + dt_bias), dt_limit)      the step size; softplus(x) = x above 20
    h_t = exp(s_t A) h_{t-1} + s_t x_t B_t^T             h_0 the initial state or 0, a matrix [P, N]
    y_t = h_t C_t + D x_t

It is the selective scan with one A for the whole head and one step size for its P channels.

Shapes: B batch, L steps, H heads of width P, G groups of H/G heads that share B and C, N states.
Source: Dao and Gu, "Transformers are SSMs", 2024, sections 3 and 6 (mamba2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Gradients, Inputs

SOFTPLUS_THRESHOLD = 20.0


class Steps(NamedTuple):
    """The step sizes [B, L, H] in the working type, before and after softplus and the limits."""

    raw: Tensor
    softened: Tensor
    size: Tensor


def step_sizes(inputs: Inputs) -> Steps:
    """dt + dt_bias, its softplus if asked for, and that within the limits."""
    raw = inputs.dt.to(inputs.A.dtype)
    raw = raw if inputs.dt_bias is None else raw + inputs.dt_bias
    softened = F.softplus(raw, threshold=SOFTPLUS_THRESHOLD) if inputs.dt_softplus else raw
    return Steps(raw, softened, softened.clamp(inputs.dt_min, inputs.dt_max))


def through_step_sizes(dsize: Tensor, steps: Steps, inputs: Inputs) -> Tensor:
    """The gradient of dt [B, L, H] from that of the step sizes; none passes where a limit holds."""
    draw = dsize.masked_fill((steps.softened < inputs.dt_min) | (steps.softened > inputs.dt_max), 0.0)
    if inputs.dt_softplus:
        draw = draw * torch.where(steps.raw > SOFTPLUS_THRESHOLD, 1.0, torch.sigmoid(steps.raw))
    return draw


def _per_head(projection: Tensor, heads: int, work: torch.dtype) -> Tensor:
    """[B, L, G, N] as [L, B, H, 1, N]."""
    return projection.to(work).repeat_interleave(heads // projection.shape[2], 2).transpose(0, 1).unsqueeze(3)


def _states(x: Tensor, steps: Steps, A: Tensor, B: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The decays [L, B, H, 1, 1] and all states h_0 .. h_L [L + 1, B, H, P, N]."""
    batch, length, heads, width = x.shape
    size = steps.size.transpose(0, 1)[..., None, None]
    decay = torch.exp(size * A[:, None, None])
    drive = size * x.to(A.dtype).transpose(0, 1).unsqueeze(4)
    states = A.new_empty(length + 1, batch, heads, width, B.shape[3])
    states[0] = 0.0 if initial is None else initial
    B = _per_head(B, heads, A.dtype)
    for t in range(length):
        torch.addcmul(drive[t] * B[t], decay[t], states[t], out=states[t + 1])
    return decay, states


def forward(inputs: Inputs, out_dtype: torch.dtype, chunk: int) -> tuple[Tensor, Tensor]:
    """Output [B, L, H, P] and last state [B, H, P, N]; `chunk` has no effect here."""
    x, A, B, C, D = inputs.x, inputs.A, inputs.B, inputs.C, inputs.D
    with torch.autocast(x.device.type, enabled=False):
        steps = step_sizes(inputs)
        _, states = _states(x, steps, A, B, inputs.initial_states)
        y = (states[1:] * _per_head(C, x.shape[2], A.dtype)).sum(-1).transpose(0, 1)
        if D is not None:
            y = y + D * x.to(A.dtype)
    return y.to(out_dtype).contiguous(), states[-1].clone()


def backward(dy: Tensor, dlast: Tensor | None, inputs: Inputs, chunk: int) -> Gradients:
    """Gradients of x, dt, A, B, C, D, dt_bias, initial_states (the last three empty if absent).

    With g_t the gradient of the state h_t, walking back in time:

        g_t  = dy_t C_t^T + exp(s_{t+1} A) g_{t+1}
        dC_t = sum over the heads of the group of h_t^T dy_t
        dB_t = sum over the heads of the group of g_t^T s_t x_t
        dx_t = s_t g_t B_t + D dy_t
        da_t = <g_t, exp(s_t A) h_{t-1}>                      a_t = s_t A
        ds_t = <g_t B_t, x_t> + A da_t                        dA = sum of s_t da_t
    """
    x, dt, A, B, C, D, dt_bias, initial_states = inputs[:8]
    batch, length, heads, width = x.shape
    groups, work = B.shape[2], A.dtype
    with torch.autocast(x.device.type, enabled=False):
        steps = step_sizes(inputs)
        decay, states = _states(x, steps, A, B, initial_states)
        wide_x, wide_dy = x.to(work).transpose(0, 1), dy.to(work).transpose(0, 1)  # [L, B, H, P]
        g = torch.empty_like(states[1:])
        after = torch.zeros_like(states[0]) if dlast is None else dlast.to(work)
        pushed = wide_dy.unsqueeze(4) * _per_head(C, heads, work)
        for t in reversed(range(length)):
            torch.add(pushed[t], after, out=g[t])
            after = decay[t] * g[t]

        size = steps.size.transpose(0, 1)  # [L, B, H]
        through_B = (g * _per_head(B, heads, work)).sum(-1)  # [L, B, H, P]
        dx = through_B * size.unsqueeze(3)
        if D is not None:
            dx = dx + D * wide_dy
        dB = (g * (size.unsqueeze(3) * wide_x).unsqueeze(4)).sum(3)
        dC = (states[1:] * wide_dy.unsqueeze(4)).sum(3)
        dB, dC = (d.unflatten(2, (groups, heads // groups)).sum(3).transpose(0, 1) for d in (dB, dC))
        da = (g * decay * states[:-1]).sum((3, 4))
        dsize = (through_B * wide_x).sum(3) + A * da
        draw = through_step_sizes(dsize.transpose(0, 1), steps, inputs)
        dD = A.new_empty(0) if D is None else (wide_dy * wide_x).sum((0, 1))
        dbias = A.new_empty(0) if dt_bias is None else draw.sum((0, 1))
        dinitial = A.new_empty(0) if initial_states is None else after.clone()
    return (
        dx.transpose(0, 1).to(x.dtype).contiguous(),
        draw.to(dt.dtype).contiguous(),
        (size * da).sum((0, 1)),
        dB.to(B.dtype).contiguous(),
        dC.to(C.dtype).contiguous(),
        dD,
        dbias,
        dinitial,
    )
