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
    raw += (tl.program_id(2) * tl.num_programs(0).to(tl.int64) + tl.program_id(0)) * chunk * C64 + channel
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    maps += k * L
    x_dbl += batch * p_batch + k * (R + 2 * N)
    project(x_dbl, p_position, maps, dt_weight + at * R, inside, j * chunk, L, tiles, R, raw, C, T, RB)
    for i in range(tiles):
        tile = tiles - 1 - i
        step = j * chunk + tile * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + step, mask=live, other=0).to(tl.int32)
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the gradient that the tile behind left is in place
        delta = tl.where(mask, softplus(step_sizes(raw + tile * T * C, C, bias, inside, T)), 0.0)
        places = batch * dy_batch + position[:, None].to(tl.int64) * dy_position + channel[None, :]
        dy_tile = tl.load(dy + places, mask=mask, other=0.0).to(tl.float32)
        row = x_dbl + position.to(tl.int64) * p_position + R + N
        pull_tile(delta, dy_tile, live, inside, A + at * N, row, 1, kept, KC, N)
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
    gradient of the state on its way back; so is raw [B * chunks, chunk, C].
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

    maps += k * L
    column = k * (R + 2 * N)
    x_dbl += batch * p_batch + column
    dp += tl.program_id(1) * dp_block + batch * dp_batch + column
    products = tl.cdiv(tl.minimum(chunk, L - j * chunk), RB)
    project(x_dbl, p_position, maps, dt_weight + at * R, inside, j * chunk, L, products, R, raw, C, RB, RB)

    for i in range(tiles - 1):
        step = j * chunk + i * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + step, mask=live, other=0).to(tl.int32)
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the states that the tile before left are in place
        delta = tl.where(mask, softplus(step_sizes(raw + i * T * C, C, bias, inside, T)), 0.0)
        places = batch * x_batch + position[:, None].to(tl.int64) * x_position + channel[None, :]
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        B = x_dbl + position.to(tl.int64) * p_position + R
        scan_tile(
            u, delta, u, live, inside, A + at * N, B, B, 0, 1, 1,
            entered + i * tile_states, entered + (i + 1) * tile_states, C64, C64, N, False,
        )  # fmt: skip

    sum_D = tl.zeros([BC], tl.float32)
    sum_bias = tl.zeros([BC], tl.float32)
    for i in range(tiles):
        tile = tiles - 1 - i
        step = j * chunk + tile * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + step, mask=live, other=0).to(tl.int32)
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # what the tile behind left is in place
        raw_tile = raw + tile * T * C
        delta = tl.where(mask, softplus(step_sizes(raw_tile, C, bias, inside, T)), 0.0)
        places = batch * x_batch + position[:, None].to(tl.int64) * x_position + channel[None, :]
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        d_places = batch * dy_batch + position[:, None].to(tl.int64) * dy_position + channel[None, :]
        dy_tile = tl.load(dy + d_places, mask=mask, other=0.0).to(tl.float32)
        B = x_dbl + position.to(tl.int64) * p_position + R
        dB = dp + position.to(tl.int64) * dp_position + R
        through_B, through_A = gradients_tile(
            delta, u, dy_tile, live, inside, A + at * N, B, B, N, 1, 1,
            entered + tile * tile_states, C64, carry, C64,
            dA + (program * KC + at) * N, i > 0, dB, dB, N, 1, 1, N,
        )  # fmt: skip
        du = dy_tile * skip[None, :] + through_B * delta
        dx_places = batch * dx_batch + position[:, None].to(tl.int64) * dx_position + channel[None, :]
        if ADD:
            du += tl.load(dx_before + dx_places, mask=mask, other=0.0)
        tl.store(dx + dx_places, du.to(dx.dtype.element_ty), mask=mask)
        slope = softplus_slope(step_sizes(raw_tile, C, bias, inside, T))
        draw = tl.where(mask, (through_B * u + through_A) * slope, 0.0)
        sum_D += tl.sum(dy_tile * u, 0)
        sum_bias += tl.sum(draw, 0)
        tl.debug_barrier()
        tl.store(raw_tile[None, :] + tl.arange(0, T)[:, None] * C, draw, mask=inside[None, :])
    if HAS_D:
        tl.store(dD + program * KC + at, sum_D, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + program * KC + at, sum_bias, mask=inside)

    tl.debug_barrier()  # raw now holds the gradient of what `project` put there
    for start in range(0, R, RB):
        r = start + tl.arange(0, RB)
        ranks = r < R
        weights = at[:, None] * R + r[None, :]
        weight_mask = inside[:, None] & ranks[None, :]
        w = tl.load(dt_weight + weights, mask=weight_mask, other=0.0)
        d_w = tl.zeros([BC, RB], tl.float32)
        for i in range(products):
            row = i * RB + tl.arange(0, RB)
            live = j * chunk + row < L
            position = tl.load(maps + j * chunk + row, mask=live, other=0).to(tl.int32)
            draw = tl.load(raw[None, :] + row[:, None] * C, mask=live[:, None] & inside[None, :], other=0.0)
            mask = live[:, None] & ranks[None, :]
            dt = tl.load(x_dbl + position[:, None].to(tl.int64) * p_position + r[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
            d_w = tl.dot(tl.trans(draw), dt, d_w, input_precision="tf32x3")
            ddt = tl.dot(draw, w, input_precision="tf32x3").to(dp.dtype.element_ty)
            tl.store(dp + position[:, None].to(tl.int64) * dp_position + r[None, :], ddt, mask=mask)
        tl.store(d_dt_weight + program * KC * R + weights, d_w, mask=weight_mask)
