"""The pooled scan on a GPU by the portable kernels of `triton_kernels.py`.

Two launches make the forward (the pooled recurrence, the expansion) and two the backward (the sums over the tokens, the
gradient of the recurrence). What several programs contribute to is written apart and summed by PyTorch: there are no
atomics, and the results are the same bits every time. Pooled tensors are read where they are, whatever their strides;
u_full and dy need their channels or their tokens side by side and are copied otherwise.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from triton import cdiv, next_power_of_2

from ..selective_scan.layout import chunk_length, empty_projection, empty_sequence, stored_states
from .arguments import Inputs
from .library import lined_up, lined_up_as, mask
from .tokens import empty_full, empty_output, is_channel_last
from .triton_kernels import expand_kernel, gather_kernel, scan_backward_kernel, scan_kernel

# A program of the sums over the tokens takes several steps where that many programs are left to fill the GPU.
_ENOUGH_PROGRAMS = 2048


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _width(channels: int, most: int) -> int:
    """Channels of a program of the recurrence."""
    return min(most, max(16, next_power_of_2(channels)))


def _tile(channel_last: bool) -> dict[str, int]:
    """Tokens and channels of a tile: wide along the axis that lies side by side."""
    return {"TOKENS": 16, "WIDTH": 128} if channel_last else {"TOKENS": 64, "WIDTH": 16}


def _line(x: Tensor, channel_last: bool) -> int:
    """The stride of the axis of [.., D, L] that does not lie side by side."""
    return x.stride(-1) if channel_last else x.stride(-2)


def forward(inputs: Inputs, out_dtype: torch.dtype, save_states: bool) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    u_full, u_pooled, delta, A, B, C, D, delta_bias, tokens, reverse, delta_softplus, average = inputs
    u_full, A = lined_up(u_full), A.contiguous()
    batch, groups, channels, length = u_full.shape
    steps, N = u_pooled.shape[2], A.shape[1]
    kept = stored_states(steps, N, u_full.device.type) if save_states else 0
    y = empty_output(u_full, out_dtype, average)
    states = A.new_empty(groups, batch, kept, N, channels)
    if batch == 0:
        return y, states
    z = A.new_empty(batch, steps, groups * channels)
    last = is_channel_last(u_full)
    outer, pool1, inner, pool2 = tokens
    with _on(u_full):
        width = _width(channels, 64)
        scan_kernel[(cdiv(channels, width) * groups * batch,)](
            u_pooled, delta, A, B, C, A if delta_bias is None else delta_bias.contiguous(), z, states,
            *u_pooled.stride(), *delta.stride(), *B.stride(), *C.stride(),
            batch, groups, channels, steps, N, groups * channels // delta.shape[1], mask(reverse),
            CHUNK=chunk_length(N, u_full.device.type), WIDTH=width, STATES=next_power_of_2(N),
            SOFTPLUS=delta_softplus, BIAS=delta_bias is not None, KEEP=kept > 0, num_warps=2, num_stages=1,
        )  # fmt: skip
        added, tile = groups if average else 1, _tile(last)
        programs = cdiv(channels, tile["WIDTH"]) * cdiv(length, tile["TOKENS"]) * batch * (groups // added)
        expand_kernel[(programs,)](
            u_full, A if D is None else D.contiguous(), z, y,
            u_full.stride(0), u_full.stride(1), _line(u_full, last), y.stride(0), _line(y, last),
            groups, channels, length, steps, inner, pool2, pool1 * pool2,
            ADDED=added, SKIP=D is not None, CHANNEL_LAST=last, **tile, num_warps=4, num_stages=1,
        )  # fmt: skip
    return y, states


def backward(dy: Tensor, inputs: Inputs, states: Tensor) -> tuple[Tensor, ...]:
    """As `reference.backward`."""
    u_full, u_pooled, delta, A, B, C, D, delta_bias, tokens, reverse, delta_softplus, average = inputs
    dy, u_full, A = lined_up_as(dy, u_full), lined_up(u_full), A.contiguous()
    batch, groups, channels, _ = u_full.shape
    steps, N, KD, ratio = u_pooled.shape[2], A.shape[1], groups * channels, groups * channels // delta.shape[1]
    du_full = u_full.new_empty(0) if D is None else empty_full(u_full)
    du = empty_sequence(u_pooled, u_pooled.dtype)
    ddelta = empty_sequence(delta, delta.dtype)
    if batch == 0:
        dD, dbias = A.new_zeros(0 if D is None else KD), A.new_zeros(0 if delta_bias is None else delta.shape[1])
        return du_full, du, ddelta, torch.zeros_like(A), empty_projection(B), empty_projection(C), dD, dbias
    ddelta_apart = ddelta if ratio == 1 else A.new_empty(batch, steps, KD).transpose(1, 2)
    last, added = is_channel_last(u_full), groups if average else 1
    chunk = chunk_length(N, u_full.device.type)
    rows = max(2, chunk if steps > chunk else next_power_of_2(steps))
    width = _width(channels, 64 if rows <= 16 else 32)
    outer, pool1, inner, pool2 = tokens
    blocks = cdiv(channels, width)
    dz = A.new_empty(batch, steps, KD // added)
    dA_parts, carry, dbias_parts = A.new_empty(batch, N, KD), A.new_empty(batch, N, KD), A.new_empty(batch, KD)
    dBC = A.new_empty(2, blocks, batch, groups, N, steps)
    with _on(u_full):
        tile = _tile(last)
        programs = cdiv(channels, tile["WIDTH"]) * batch * (groups // added)
        splits = min(steps, cdiv(_ENOUGH_PROGRAMS, programs))
        dD_parts = A.new_empty(batch, splits, KD)
        target = u_full if D is None else du_full  # without D it is not written
        gather_kernel[(programs * splits,)](
            dy, u_full, A if D is None else D.contiguous(), target, dz, dD_parts,
            dy.stride(0), _line(dy, last), u_full.stride(0), u_full.stride(1), _line(u_full, last),
            target.stride(0), target.stride(1), _line(target, last),
            groups, channels, steps, inner, pool1, pool2, splits,
            ADDED=added, SKIP=D is not None, CHANNEL_LAST=last, **tile, num_warps=4, num_stages=1,
        )  # fmt: skip
        scan_backward_kernel[(blocks * groups * batch,)](
            dz, u_pooled, delta, A, B, C, A if delta_bias is None else delta_bias.contiguous(), states.contiguous(),
            du, ddelta_apart, dA_parts, dbias_parts, dBC, carry,
            channels if added == 1 else 0, *u_pooled.stride(), *delta.stride(), *B.stride(), *C.stride(),
            *du.stride(), *ddelta_apart.stride(),
            batch, groups, channels, steps, N, ratio, mask(reverse), KD // added,
            CHUNK=rows, WIDTH=width, SOFTPLUS=delta_softplus, BIAS=delta_bias is not None,
            num_warps=4 if rows <= 16 else 8, num_stages=1,
        )  # fmt: skip
    if ratio != 1:
        ddelta.copy_(ddelta_apart.unflatten(1, (-1, ratio)).sum(2))
    dA = dA_parts.sum(0).t().contiguous()
    dD = dD_parts.sum((0, 1)) if D is not None else A.new_empty(0)
    dbias = A.new_empty(0) if delta_bias is None else dbias_parts.sum(0).view(-1, ratio).sum(1)
    dB, dC = (empty_projection(x).copy_(part) for x, part in zip((B, C), dBC.sum(1), strict=True))
    return du_full, du, ddelta, dA, dB, dC, dD, dbias
