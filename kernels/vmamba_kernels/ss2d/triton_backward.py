"""The backward kernels of ss2d in Triton: a program has one chunk of one direction and a block of channels.

Names as in `triton_forward.py`. Every sum over programs goes through a buffer with a place for each of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..selective_scan.triton_tile import copy_state, gradients_tile, pull_tile, scan_tile, softplus, softplus_slope
from .triton_forward import project, step_sizes

NOT_SPECIALIZED = (
    "L C R chunk k x_batch x_position p_batch p_position dy_batch dy_position "
    "dx_batch dx_position dp_block dp_batch dp_position"
).split()


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def pull_kernel(
    x_dbl, dt_weight, A, delta_bias, maps, dy, pulled, total, raw,
    L, C, R, N, K, chunk, p_batch, p_position, dy_batch, dy_position,
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
    C64 = C.to(tl.int64)
    KC = K * C64
    bias = tl.zeros([BC], tl.float32)
    if HAS_BIAS:
        bias = tl.load(delta_bias + at, mask=inside, other=0.0)
    kept = pulled + (batch * (chunks - 1) + j - 1) * N * KC + at
    copy_state(kept, kept, False, inside, KC, KC, N)
    sums = tl.zeros([BC], tl.float32)
    raw += (tl.program_id(2) * tl.num_programs(0).to(tl.int64) + tl.program_id(0)) * T * C64 + channel
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    for i in range(0, tiles):
        step = j * chunk + (tiles - 1 - i) * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + k * L + step, mask=live, other=0)
        mask = live[:, None] & inside[None, :]
        row = x_dbl + batch * p_batch + position * p_position + k * (R + 2 * N)
        project(row, dt_weight + at * R, live, inside, R, raw, C64, T, RB)
        tl.debug_barrier()  # the product, and the gradient that the tile behind left, are in place
        delta = tl.where(mask, softplus(step_sizes(raw, C64, bias, inside, T)), 0.0)
        places = batch * dy_batch + position[:, None] * dy_position + channel[None, :]
        dy_tile = tl.load(dy + places, mask=mask, other=0.0).to(tl.float32)
        pull_tile(delta, dy_tile, live, inside, A + at * N, row + (R + N), 1, kept, KC, N)
        sums += tl.sum(delta, 0)
    tl.store(total + (batch * chunks + j) * KC + at, sums, mask=inside)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def gradients_kernel(
    x, x_dbl, dt_weight, A, D, delta_bias, maps, states, dy, pulled, entered, carry, raw,
    dx_before, dx, dp, d_dt_weight, dA, dD, dbias,
    L, C, R, N, K, chunk, k,
    x_batch, x_position, p_batch, p_position, dy_batch, dy_position,
    dx_batch, dx_position, dp_block, dp_batch, dp_position,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    T: tl.constexpr, BC: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    """All gradients of one direction: dx, with dx_before added if ADD; dp, those of x_dbl, one sum for each block of
    channels; and of the weights one sum for each chunk, [B * chunks, *the weight].

    entered [B * chunks, chunk / T, N, C] and carry [B * chunks, N, C] are scratch: the states before each tile, and the
    gradient of the state on its way back; so is raw [B * chunks, chunk, C], of `project`.
    """
    chunks = tl.cdiv(L, chunk)
    program = tl.program_id(0).to(tl.int64)
    batch = program // chunks
    j = (program % chunks).to(tl.int32)
    k = k.to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channel < C
    at = k * C + channel
    C64 = C.to(tl.int64)
    KC = K * C64
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
    raw += program * chunk * C64 + channel
    copy_state(states + slot - N * KC, entered, j > 0, inside, KC, C64, N)
    copy_state(pulled + slot, carry, j < chunks - 1, inside, KC, C64, N)

    for i in range(0, tiles - 1):
        step = j * chunk + i * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + k * L + step, mask=live, other=0)
        mask = live[:, None] & inside[None, :]
        row = x_dbl + batch * p_batch + position * p_position + k * (R + 2 * N)
        raw_tile = raw + i * T * C64
        project(row, dt_weight + at * R, live, inside, R, raw_tile, C64, T, RB)
        tl.debug_barrier()  # the product, and the states that the tile before left, are in place
        delta = tl.where(mask, softplus(step_sizes(raw_tile, C64, bias, inside, T)), 0.0)
        places = batch * x_batch + position[:, None] * x_position + channel[None, :]
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        B = row + R
        scan_tile(
            delta, u, live, inside, A + at * N, B, B, 1, 1,
            entered + i * tile_states, entered + (i + 1) * tile_states, C64, C64, N, False,
        )  # fmt: skip

    step = j * chunk + (tiles - 1) * T + tl.arange(0, T)
    live = step < L
    position = tl.load(maps + k * L + step, mask=live, other=0)
    row = x_dbl + batch * p_batch + position * p_position + k * (R + 2 * N)
    project(row, dt_weight + at * R, live, inside, R, raw + (tiles - 1) * T * C64, C64, T, RB)

    sum_D = tl.zeros([BC], tl.float32)
    sum_bias = tl.zeros([BC], tl.float32)
    for i in range(0, tiles):
        tile = tiles - 1 - i
        step = j * chunk + tile * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + k * L + step, mask=live, other=0)
        mask = live[:, None] & inside[None, :]
        column = k * (R + 2 * N)
        row = x_dbl + batch * p_batch + position * p_position + column
        d_row = dp + tl.program_id(1) * dp_block + batch * dp_batch + position * dp_position + column
        tl.debug_barrier()  # what the tile behind left is in place
        x_step = step_sizes(raw + tile * T * C64, C64, bias, inside, T)
        delta = tl.where(mask, softplus(x_step), 0.0)
        places = batch * x_batch + position[:, None] * x_position + channel[None, :]
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        places = batch * dy_batch + position[:, None] * dy_position + channel[None, :]
        dy_tile = tl.load(dy + places, mask=mask, other=0.0).to(tl.float32)
        B = row + R
        dB = d_row + R
        through_B, through_A = gradients_tile(
            delta, u, dy_tile, live, inside, A + at * N, B, B + N, 1, 1,
            entered + tile * tile_states, C64, carry, C64,
            dA + (program * KC + at) * N, i > 0, dB, dB + N, 1, 1, N,
        )  # fmt: skip
        du = dy_tile * skip[None, :] + through_B * delta
        places = batch * dx_batch + position[:, None] * dx_position + channel[None, :]
        if ADD:
            du += tl.load(dx_before + places, mask=mask, other=0.0)
        tl.store(dx + places, du.to(dx.dtype.element_ty), mask=mask)
        draw = tl.where(mask, (through_B * u + through_A) * softplus_slope(x_step), 0.0)
        sum_D += tl.sum(dy_tile * u, 0)
        sum_bias += tl.sum(draw, 0)
        for start in range(0, R, RB):
            r = start + tl.arange(0, RB)
            ranks = r < R
            dt_mask = live[:, None] & ranks[None, :]
            dt = tl.load(row[:, None] + r[None, :], mask=dt_mask, other=0.0).to(tl.float32)
            w_places = at[:, None] * R + r[None, :]
            w_mask = inside[:, None] & ranks[None, :]
            w = tl.load(dt_weight + w_places, mask=w_mask, other=0.0)
            ddt = tl.dot(draw, w, input_precision="tf32x3")
            tl.store(d_row[:, None] + r[None, :], ddt.to(dp.dtype.element_ty), mask=dt_mask)
            w_places += program * KC * R
            d_w = tl.load(d_dt_weight + w_places, mask=w_mask & (i > 0), other=0.0)
            d_w = tl.dot(tl.trans(draw), dt, d_w, input_precision="tf32x3")
            tl.debug_barrier()
            tl.store(d_dt_weight + w_places, d_w, mask=w_mask)
    if HAS_D:
        tl.store(dD + program * KC + at, sum_D, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + program * KC + at, sum_bias, mask=inside)
