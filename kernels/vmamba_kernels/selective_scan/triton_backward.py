"""The backward kernels of the selective scan in Triton: a program has one chunk of one group and a block of channels.

Names as in `triton_forward.py`. Every sum over programs goes through a buffer with a place for each of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_math import softplus_slope
from .triton_forward import program_of, rows_of, step_sizes
from .triton_tile import copy_state, gradients_tile, pull_tile, scan_tile

PULL = "L K width chunk delta_batch delta_step dy_batch dy_step".split()
GRADIENTS = [
    *PULL,
    *"u_batch u_step du_batch du_step ddelta_batch ddelta_step".split(),
]


@triton.jit(do_not_specialize=PULL)
def pull_kernel(
    delta, A, rows, delta_bias, dy, pulled, total, L, N, K, width, chunk,
    delta_batch, delta_step, dy_batch, dy_step,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, T: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradient that every chunk but the first hands to the states before it when none reaches it from behind.

    pulled [B, chunks - 1, N, KC], and the sums of delta over the chunks, total [B, chunks, KC].
    """
    chunks = tl.cdiv(L, chunk)
    group, batch, before = program_of(K, chunks - 1)
    j = before + 1
    inside = tl.program_id(1) * BC + tl.arange(0, BC) < width
    KC = K.to(tl.int64) * width
    channel = group * width + tl.program_id(1) * BC + tl.arange(0, BC)
    bias = tl.zeros([BC], tl.float32)
    if HAS_BIAS:
        bias = tl.load(delta_bias + channel, mask=inside, other=0.0)
    kept = pulled + (batch * (chunks - 1) + before) * N * KC + channel
    copy_state(kept, kept, False, inside, KC, KC, N)
    sums = tl.zeros([BC], tl.float32)
    delta += batch * delta_batch + channel
    dy += batch * dy_batch + channel
    rows += (batch * K + group) * L * 2 * N + N
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    for i in range(tiles):
        first = j * chunk + (tiles - 1 - i) * T
        step = first + tl.arange(0, T)
        live = step < L
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the gradient that the tile behind left is in place
        places = rows_of(delta, first, delta_step, T)
        sizes, _ = step_sizes(places, bias, mask, SOFTPLUS)
        places = rows_of(dy, first, dy_step, T)
        dy_tile = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        row = rows_of(rows, first, 2 * N, T)
        pull_tile(sizes, dy_tile, live, inside, A + channel * N, row, 1, kept, KC, N)
        sums += tl.sum(sizes, 0)
    tl.store(total + (batch * chunks + j) * KC + channel, sums, mask=inside)


@triton.jit(do_not_specialize=GRADIENTS)
def gradients_kernel(
    u, delta, A, rows, D, delta_bias, states, dy, dlast, pulled, entered, carry,
    du, ddelta, dA, d_rows, dD, dbias, L, N, K, width, chunk,
    u_batch, u_step, delta_batch, delta_step,
    dy_batch, dy_step, du_batch, du_step, ddelta_batch, ddelta_step,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LAST: tl.constexpr, SOFTPLUS: tl.constexpr,
    T: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """All gradients: du; ddelta; d_rows [blocks of channels, B, K, L, 2, N] in float32, those of
    B and C; and of the weights a sum for each chunk, [B * chunks, *the weight].

    entered [B * chunks, chunk / T, N, KC] and carry [B * chunks, N, KC] are scratch: the states before each tile, and
    the gradient of the state on its way back, which is dlast [B, KC, N] behind the last chunk.
    """
    chunks = tl.cdiv(L, chunk)
    group, batch, j = program_of(K, chunks)
    program = batch * chunks + j
    inside = tl.program_id(1) * BC + tl.arange(0, BC) < width
    KC = K.to(tl.int64) * width
    channel = group * width + tl.program_id(1) * BC + tl.arange(0, BC)
    bias = tl.zeros([BC], tl.float32)
    skip = tl.zeros([BC], tl.float32)
    if HAS_BIAS:
        bias = tl.load(delta_bias + channel, mask=inside, other=0.0)
    if HAS_D:
        skip = tl.load(D + channel, mask=inside, other=0.0)
    slot = (batch * (chunks - 1) + j) * N * KC + channel  # of the state at the end of the chunk
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    entered += program * (chunk // T) * N * KC + channel
    carry += program * N * KC + channel
    copy_state(states + slot - N * KC, entered, j > 0, inside, KC, KC, N)
    if HAS_LAST:
        if j == chunks - 1:
            copy_state(dlast + (batch * KC + channel) * N, carry, True, inside, 1, KC, N)
        else:
            copy_state(pulled + slot, carry, True, inside, KC, KC, N)
    else:
        copy_state(pulled + slot, carry, j < chunks - 1, inside, KC, KC, N)
    u += batch * u_batch + channel
    delta += batch * delta_batch + channel
    dy += batch * dy_batch + channel
    du += batch * du_batch + channel
    ddelta += batch * ddelta_batch + channel
    rows += (batch * K + group) * L * 2 * N
    images = tl.num_programs(0) // (chunks * K)
    d_rows += ((tl.program_id(1) * images.to(tl.int64) + batch) * K + group) * L * 2 * N

    for i in range(tiles - 1):
        first = j * chunk + i * T
        step = first + tl.arange(0, T)
        live = step < L
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the states that the tile before left are in place
        places = rows_of(delta, first, delta_step, T)
        sizes, _ = step_sizes(places, bias, mask, SOFTPLUS)
        places = rows_of(u, first, u_step, T)
        u_tile = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        row = rows_of(rows, first, 2 * N, T)
        scan_tile(
            u_tile, sizes, u_tile, live, inside, A + channel * N, row, row, 0, 1, 1,
            entered + i * N * KC, entered + (i + 1) * N * KC, KC, KC, N, False,
        )  # fmt: skip

    sum_D = tl.zeros([BC], tl.float32)
    sum_bias = tl.zeros([BC], tl.float32)
    for i in range(tiles):
        tile = tiles - 1 - i
        first = j * chunk + tile * T
        step = first + tl.arange(0, T)
        live = step < L
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # what the tile behind left is in place
        d_places = rows_of(delta, first, delta_step, T)
        sizes, _ = step_sizes(d_places, bias, mask, SOFTPLUS)
        places = rows_of(u, first, u_step, T)
        u_tile = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        places = rows_of(dy, first, dy_step, T)
        dy_tile = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        row = rows_of(rows, first, 2 * N, T)
        d_row = rows_of(d_rows, first, 2 * N, T)
        through_B, through_A = gradients_tile(
            sizes, u_tile, dy_tile, live, inside, A + channel * N, row, row, N, 1, 1, entered + tile * N * KC, KC,
            carry, KC, dA + (program * KC + channel) * N, i > 0, d_row, d_row, N, 1, 1, N,
        )  # fmt: skip
        places = rows_of(du, first, du_step, T)
        tl.store(places, (dy_tile * skip[None, :] + through_B * sizes).to(du.dtype.element_ty), mask=mask)
        draw = through_B * u_tile + through_A
        if SOFTPLUS:
            _, raw = step_sizes(d_places, bias, mask, False)
            draw *= softplus_slope(raw)
        draw = tl.where(mask, draw, 0.0)
        places = rows_of(ddelta, first, ddelta_step, T)
        tl.store(places, draw.to(ddelta.dtype.element_ty), mask=mask)
        sum_D += tl.sum(dy_tile * u_tile, 0)
        sum_bias += tl.sum(draw, 0)
    if HAS_D:
        tl.store(dD + program * KC + channel, sum_D, mask=inside)
    if HAS_BIAS:
        tl.store(dbias + program * KC + channel, sum_bias, mask=inside)
