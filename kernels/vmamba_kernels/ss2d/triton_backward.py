"""The backward kernels of ss2d in Triton: a program has one chunk of one direction and a block of channels.

Names as in `triton_forward.py`. Every sum over programs goes through a buffer with a place for each of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..selective_scan.triton_tile import copy_state, gradients_tile, pull_tile, scan_tile
from ..triton_math import softplus_slope
from .triton_forward import step_sizes

NOT_SPECIALIZED = (
    "L C R images chunk k x_batch x_position p_batch p_position dy_batch dy_position "
    "dx_batch dx_position dp_block dp_batch dp_direction dp_position"
).split()


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def pull_kernel(
    x_dbl, A, maps, dy, pulled, total, raw, L, C, R, N, K, chunk, p_batch, p_position, dy_batch, dy_position,
    T: tl.constexpr, BC: tl.constexpr,
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
    kept = pulled + (batch * (chunks - 1) + j - 1) * N * KC + at
    copy_state(kept, kept, False, inside, KC, KC, N)
    sums = tl.zeros([BC], tl.float32)
    images = tl.num_programs(0) // (chunks - 1)
    raw += ((k * images + batch) * chunks + j) * chunk * C64 + channel
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    maps += k * L
    x_dbl += batch * p_batch + k * (R + 2 * N)
    for i in range(tiles):
        tile = tiles - 1 - i
        step = j * chunk + tile * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + step, mask=live, other=0).to(tl.int32)
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the gradient that the tile behind left is in place
        delta, _ = step_sizes(raw + tile * T * C, C, mask, T)
        places = batch * dy_batch + position[:, None].to(tl.int64) * dy_position + channel[None, :]
        dy_tile = tl.load(dy + places, mask=mask, other=0.0).to(tl.float32)
        row = x_dbl + position.to(tl.int64) * p_position + R + N
        pull_tile(delta, dy_tile, live, inside, A + at * N, row, 1, kept, KC, N)
        sums += tl.sum(delta, 0)
    tl.store(total + (batch * chunks + j) * KC + at, sums, mask=inside)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def gradients_kernel(
    x, x_dbl, A, D, maps, states, dy, pulled, entered, carry, raw, dx_before, dx, dp, dA, dD,
    L, C, R, N, K, chunk, k,
    x_batch, x_position, p_batch, p_position, dy_batch, dy_position,
    dx_batch, dx_position, dp_block, dp_batch, dp_direction, dp_position,
    HAS_D: tl.constexpr, ADD: tl.constexpr, T: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of one direction: dx, with dx_before added if ADD; dp, those of B and C, one sum for each block of
    channels; of A and D one sum for each chunk, [B * chunks, *the weight]; and in raw's place that of raw.

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
    C64 = C.to(tl.int64)
    KC = K * C64
    skip = tl.zeros([BC], tl.float32)
    if HAS_D:
        skip = tl.load(D + at, mask=inside, other=0.0)
    slot = (batch * (chunks - 1) + j) * N * KC + at  # of the state at the end of the chunk
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    tile_states = N * C64
    entered += program * (chunk // T) * tile_states + channel
    carry += program * tile_states + channel
    raw += (k * tl.num_programs(0) + program) * chunk * C64 + channel
    copy_state(states + slot - N * KC, entered, j > 0, inside, KC, C64, N)
    copy_state(pulled + slot, carry, j < chunks - 1, inside, KC, C64, N)

    maps += k * L
    x_dbl += batch * p_batch + k * (R + 2 * N) + R
    dp += tl.program_id(1).to(tl.int64) * dp_block + batch * dp_batch + k * dp_direction

    for i in range(tiles - 1):
        step = j * chunk + i * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + step, mask=live, other=0).to(tl.int32)
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the states that the tile before left are in place
        delta, _ = step_sizes(raw + i * T * C, C, mask, T)
        places = batch * x_batch + position[:, None].to(tl.int64) * x_position + channel[None, :]
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        B = x_dbl + position.to(tl.int64) * p_position
        scan_tile(
            u, delta, u, live, inside, A + at * N, B, B, 0, 1, 1,
            entered + i * tile_states, entered + (i + 1) * tile_states, C64, C64, N, False,
        )  # fmt: skip

    sum_D = tl.zeros([BC], tl.float32)
    for i in range(tiles):
        tile = tiles - 1 - i
        step = j * chunk + tile * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + step, mask=live, other=0).to(tl.int32)
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # what the tile behind left is in place
        raw_tile = raw + tile * T * C
        delta, _ = step_sizes(raw_tile, C, mask, T)
        places = batch * x_batch + position[:, None].to(tl.int64) * x_position + channel[None, :]
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        d_places = batch * dy_batch + position[:, None].to(tl.int64) * dy_position + channel[None, :]
        dy_tile = tl.load(dy + d_places, mask=mask, other=0.0).to(tl.float32)
        B = x_dbl + position.to(tl.int64) * p_position
        dB = dp + position.to(tl.int64) * dp_position
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
        raw_places = raw_tile[None, :] + tl.arange(0, T)[:, None] * C
        slope = softplus_slope(tl.load(raw_places, mask=mask, other=0.0))
        sum_D += tl.sum(dy_tile * u, 0)
        tl.debug_barrier()
        tl.store(raw_places, (through_B * u + through_A) * slope, mask=mask)
    if HAS_D:
        tl.store(dD + program * KC + at, sum_D, mask=inside)
