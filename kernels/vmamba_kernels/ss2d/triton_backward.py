"""The backward kernels of ss2d in Triton: a program has one chunk of one direction and a block of channels.

Names as in `triton_forward.py`. Every sum over programs goes through a buffer with a place for each of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..selective_scan.triton_tile import copy_state, gradients_tile, pull_tile, scan_tile, softplus, softplus_slope
from .triton_forward import step_sizes

NOT_SPECIALIZED = (
    "L C R chunk k x_batch x_position x_channel p_batch p_position p_column dy_batch dy_position dy_channel "
    "dx_batch dx_position dx_channel dp_block dp_batch dp_position dp_column"
).split()


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def pull_kernel(
    x_dbl, dt_weight, A, delta_bias, maps, dy, pulled, total,
    L, C, R, N, K, chunk, p_batch, p_position, p_column, dy_batch, dy_position, dy_channel,
    HAS_BIAS: tl.constexpr, T: tl.constexpr, BC: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    """The gradient that every chunk but the first hands to the states before it when none reaches it from behind.

    pulled [B, chunks - 1, N, K*C], and the sums of delta over the chunks, total [B, chunks, K*C].
    """
    chunks = tl.cdiv(L, chunk)
    batch = (tl.program_id(0) // (chunks - 1)).to(tl.int64)
    j = tl.program_id(0) % (chunks - 1) + 1
    k = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channel < C
    at = k * C + channel
    KC = (K * C).to(tl.int64)
    bias = tl.zeros([BC], tl.float32)
    if HAS_BIAS:
        bias = tl.load(delta_bias + at, mask=inside, other=0.0)
    kept = pulled + (batch * (chunks - 1) + j - 1) * N * KC + at
    copy_state(kept, kept, False, inside, KC, KC, N)
    sums = tl.zeros([BC], tl.float32)
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    for i in range(0, tiles):
        step = j * chunk + (tiles - 1 - i) * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + k * L + step, mask=live, other=0)
        mask = live[:, None] & inside[None, :]
        row = x_dbl + batch * p_batch + position * p_position + k * (R + 2 * N) * p_column
        raw = step_sizes(row, p_column, dt_weight + at * R, bias, live, inside, R, T, BC, RB)
        delta = tl.where(mask, softplus(raw), 0.0)
        places = batch * dy_batch + position[:, None] * dy_position + channel[None, :].to(tl.int64) * dy_channel
        dy_tile = tl.load(dy + places, mask=mask, other=0.0).to(tl.float32)
        tl.debug_barrier()
        pull_tile(delta, dy_tile, live, inside, A + at * N, row + (R + N) * p_column, p_column, kept, KC, N)
        sums += tl.sum(delta, 0)
    tl.store(total + (batch * chunks + j) * KC + at, sums, mask=inside)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def gradients_kernel(
    x, x_dbl, dt_weight, A, D, delta_bias, maps, states, dy, pulled, entered, carry,
    dx_before, dx, dp, d_dt_weight, dA, dD, dbias,
    L, C, R, N, K, chunk, k,
    x_batch, x_position, x_channel, p_batch, p_position, p_column, dy_batch, dy_position, dy_channel,
    dx_batch, dx_position, dx_channel, dp_block, dp_batch, dp_position, dp_column,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    T: tl.constexpr, BC: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    """All gradients of one direction: dx, with dx_before added if ADD; dp, those of x_dbl, one sum for each block of
    channels; and of the weights one sum for each chunk, [B * chunks, *the weight].

    entered [B * chunks, chunk / T, N, C] and carry [B * chunks, N, C] are scratch: the states before each tile, and the
    gradient of the state on its way back.
    """
    chunks = tl.cdiv(L, chunk)
    program = tl.program_id(0).to(tl.int64)
    batch = program // chunks
    j = (program % chunks).to(tl.int32)
    k = k.to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channel < C
    at = k * C + channel
    KC = (K * C).to(tl.int64)
    C64 = C.to(tl.int64)
    bias = tl.zeros([BC], tl.float32)
    skip = tl.zeros([BC], tl.float32)
    if HAS_BIAS:
        bias = tl.load(delta_bias + at, mask=inside, other=0.0)
    if HAS_D:
        skip = tl.load(D + at, mask=inside, other=0.0)
    slot = (batch * (chunks - 1) + j) * N * KC + at  # of the state at the end of the chunk
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    tile_states = N * C64
    entered += program * (chunk // T) * tile_states + channel
    carry += program * tile_states + channel
    copy_state(states + slot - N * KC, entered, j > 0, inside, KC, C64, N)
    copy_state(pulled + slot, carry, j < chunks - 1, inside, KC, C64, N)

    for i in range(0, tiles - 1):
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
        scan_tile(
            delta, u, live, inside, A + at * N, B, B, p_column, p_column,
            entered + i * tile_states, entered + (i + 1) * tile_states, C64, C64, N, False,
        )  # fmt: skip

    sum_D = tl.zeros([BC], tl.float32)
    sum_bias = tl.zeros([BC], tl.float32)
    for i in range(0, tiles):
        tile = tiles - 1 - i
        step = j * chunk + tile * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + k * L + step, mask=live, other=0)
        mask = live[:, None] & inside[None, :]
        column = k * (R + 2 * N)
        row = x_dbl + batch * p_batch + position * p_position + column * p_column
        d_row = dp + tl.program_id(1) * dp_block + batch * dp_batch + position * dp_position + column * dp_column
        raw = step_sizes(row, p_column, dt_weight + at * R, bias, live, inside, R, T, BC, RB)
        delta = tl.where(mask, softplus(raw), 0.0)
        places = batch * x_batch + position[:, None] * x_position + channel[None, :].to(tl.int64) * x_channel
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        places = batch * dy_batch + position[:, None] * dy_position + channel[None, :].to(tl.int64) * dy_channel
        dy_tile = tl.load(dy + places, mask=mask, other=0.0).to(tl.float32)
        tl.debug_barrier()  # what the tile behind left is in place
        B = row + R * p_column
        dB = d_row + R * dp_column
        through_B, through_A = gradients_tile(
            delta, u, dy_tile, live, inside, A + at * N, B, B + N * p_column, p_column, p_column,
            entered + tile * tile_states, C64, carry, C64,
            dA + (program * KC + at) * N, i > 0, dB, dB + N * dp_column, dp_column, dp_column, N,
        )  # fmt: skip
        du = dy_tile * skip[None, :] + through_B * delta
        places = batch * dx_batch + position[:, None] * dx_position + channel[None, :].to(tl.int64) * dx_channel
        if ADD:
            du += tl.load(dx_before + places, mask=mask, other=0.0)
        tl.store(dx + places, du.to(dx.dtype.element_ty), mask=mask)
        draw = tl.where(mask, (through_B * u + through_A) * softplus_slope(raw), 0.0)
        sum_D += tl.sum(dy_tile * u, 0)
        sum_bias += tl.sum(draw, 0)
        for start in range(0, R, RB):
            r = start + tl.arange(0, RB)
            ranks = r < R
            dt_mask = live[:, None] & ranks[None, :]
            r_wide = r[None, :].to(tl.int64)
            dt = tl.load(row[:, None] + r_wide * p_column, mask=dt_mask, other=0.0).to(tl.float32)
            w_places = at[:, None] * R + r[None, :]
            w_mask = inside[:, None] & ranks[None, :]
            w = tl.load(dt_weight + w_places, mask=w_mask, other=0.0)
            ddt = tl.dot(draw, w, input_precision="tf32x3")
            tl.store(d_row[:, None] + r_wide * dp_column, ddt.to(dp.dtype.element_ty), mask=dt_mask)
            w_places += program * KC * R
            d_w = tl.load(d_dt_weight + w_places, mask=w_mask & (i > 0), other=0.0)
            d_w = tl.dot(tl.trans(draw), dt, d_w, input_precision="tf32x3")
            tl.debug_barrier()
            tl.store(d_dt_weight + w_places, d_w, mask=w_mask)
    if HAS_D:
        tl.store(dD + program * KC + at, sum_D, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + program * KC + at, sum_bias, mask=inside)
