"""The forward kernel of ss2d in Triton: a program computes one chunk of one direction for a block of channels.

B batch, L = H*W, C channels, K directions, R rank, N states, J = K * (R + 2N). See docs/kernels/ss2d_triton.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..selective_scan.triton_tile import copy_state, scan_tile, softplus

# Strides stay unknown to the compiler: it would trade the layout in which a thread holds all steps of its channels,
# and a scan costs nothing, for wider loads.
NOT_SPECIALIZED = (
    "L C R chunk first_k x_batch x_position x_channel p_batch p_position p_column y_batch y_position y_channel"
).split()


@triton.jit
def step_sizes(rows, column_step, weights, bias, live, inside, R, T: tl.constexpr, BC: tl.constexpr, RB: tl.constexpr):
    """dt_weight dt + delta_bias [T, BC], with dt in the first R columns of the rows of x_dbl at `rows`."""
    raw = tl.zeros([T, BC], tl.float32) + bias[None, :]
    for start in range(0, R, RB):
        r = start + tl.arange(0, RB)
        dt = tl.load(
            rows[:, None] + r[None, :].to(tl.int64) * column_step, mask=live[:, None] & (r < R)[None, :], other=0.0
        )
        w = tl.load(weights[None, :] + r[:, None], mask=(r < R)[:, None] & inside[None, :], other=0.0)
        raw = tl.dot(dt.to(tl.float32), w, raw, input_precision="tf32x3")
    return raw


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward_kernel(
    x, x_dbl, dt_weight, A, D, delta_bias, maps, states, total, carry, y_before, y,
    L, C, R, N, K, chunk, first_k,
    x_batch, x_position, x_channel, p_batch, p_position, p_column, y_batch, y_position, y_channel,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, ENDS: tl.constexpr, ADD: tl.constexpr,
    T: tl.constexpr, BC: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    """ENDS: the states [B, chunks - 1, N, K*C] that the chunks but the last leave when they enter with zeros, and the
    sums of delta over them, total [B, chunks, K*C]. Else y, from the true states, with y_before added if ADD.
    """
    chunks = tl.cdiv(L, chunk)
    per_image = chunks - 1 if ENDS else chunks
    batch = (tl.program_id(0) // per_image).to(tl.int64)
    j = tl.program_id(0) % per_image
    k = (first_k + tl.program_id(2)).to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channel < C
    at = k * C + channel
    KC = (K * C).to(tl.int64)

    bias = tl.zeros([BC], tl.float32)
    if HAS_BIAS:
        bias = tl.load(delta_bias + at, mask=inside, other=0.0)
    if HAS_D:
        skip = tl.load(D + at, mask=inside, other=0.0)
    slot = (batch * (chunks - 1) + j) * N * KC + at  # of the state at the end of the chunk
    if ENDS:
        kept = states + slot
        kept_step = KC
        copy_state(kept, kept, False, inside, KC, KC, N)
        sums = tl.zeros([BC], tl.float32)
    else:
        kept = carry + (batch * chunks + j) * N * C + channel
        kept_step = C.to(tl.int64)
        copy_state(states + slot - N * KC, kept, j > 0, inside, KC, kept_step, N)

    for i in range(0, tl.cdiv(tl.minimum(chunk, L - j * chunk), T)):
        step = j * chunk + i * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + k * L + step, mask=live, other=0)
        mask = live[:, None] & inside[None, :]
        row = x_dbl + batch * p_batch + position * p_position + k * (R + 2 * N) * p_column
        raw = step_sizes(row, p_column, dt_weight + at * R, bias, live, inside, R, T, BC, RB)
        delta = tl.where(mask, softplus(raw), 0.0)
        places = batch * x_batch + position[:, None] * x_position + channel[None, :].to(tl.int64) * x_channel
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        tl.debug_barrier()  # the states that the tile before left are in place
        B = row + R * p_column
        merged = scan_tile(
            delta, u, live, inside, A + at * N, B, B + N * p_column, p_column, p_column,
            kept, kept, kept_step, kept_step, N, not ENDS,
        )  # fmt: skip
        if ENDS:
            sums += tl.sum(delta, 0)
        else:
            if HAS_D:
                merged += u * skip[None, :]
            places = batch * y_batch + position[:, None] * y_position + channel[None, :].to(tl.int64) * y_channel
            if ADD:
                merged += tl.load(y_before + places, mask=mask, other=0.0)
            tl.store(y + places, merged.to(y.dtype.element_ty), mask=mask)
    if ENDS:
        tl.store(total + (batch * chunks + j) * KC + at, sums, mask=inside)
