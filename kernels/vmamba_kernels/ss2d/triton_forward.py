"""The forward kernel of ss2d in Triton: a program computes one chunk of one direction for a block of channels.

B batch, L = H*W, C channels, K directions, R rank, N states, J = K * (R + 2N). See docs/kernels/ss2d_triton.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..selective_scan.triton_tile import copy_state, scan_tile, softplus

# Strides over rows stay unknown to the compiler: knowing them it would make wider loads, and lose the layout in which a
# thread holds all steps of its channels and a scan costs nothing.
NOT_SPECIALIZED = ("L C R chunk first_k x_batch x_position p_batch p_position y_batch y_position").split()


@triton.jit
def project(
    x_dbl, row_step, maps, weights, inside, first, last, tiles, R, raw, raw_step, T: tl.constexpr, RB: tl.constexpr
):
    """Writes dt_weight dt for the steps from `first` on, `tiles` of T, to `raw`; dt begins each row of x_dbl.

    Through memory, and not as values, because the layout of a matrix product would spread to the scan.
    """
    for start in range(0, R, RB):
        r = start + tl.arange(0, RB)
        ranks = r < R
        w = tl.load(weights[None, :] + r[:, None], mask=ranks[:, None] & inside[None, :], other=0.0)
        for i in range(tiles):
            row = i * T + tl.arange(0, T)
            live = first + row < last
            position = tl.load(maps + first + row, mask=live, other=0).to(tl.int32)
            places = raw[None, :] + row[:, None] * raw_step
            before = tl.load(places, mask=inside[None, :] & (start > 0), other=0.0)
            dt = tl.load(
                x_dbl + position[:, None].to(tl.int64) * row_step + r[None, :],
                mask=live[:, None] & ranks[None, :],
                other=0.0,
            )
            product = tl.dot(dt.to(tl.float32), w, before, input_precision="tf32x3")
            tl.debug_barrier()
            tl.store(places, product, mask=inside[None, :])
    tl.debug_barrier()


@triton.jit
def step_sizes(raw, row_step, bias, inside, T: tl.constexpr):
    """What `project` wrote for a tile, plus delta_bias: [T, BC]."""
    places = raw[None, :] + tl.arange(0, T)[:, None] * row_step
    return tl.load(places, mask=inside[None, :], other=0.0) + bias[None, :]


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward_kernel(
    x, x_dbl, dt_weight, A, D, delta_bias, maps, states, total, carry, raw, y_before, y,
    L, C, R, N, K, chunk, first_k,
    x_batch, x_position, p_batch, p_position, y_batch, y_position,
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
    C64 = C.to(tl.int64)
    KC = K * C64

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
        kept = carry + (batch * chunks + j) * N * C64 + channel
        kept_step = C64
        copy_state(states + slot - N * KC, kept, j > 0, inside, KC, kept_step, N)

    program = tl.program_id(2) * tl.num_programs(0).to(tl.int64) + tl.program_id(0)
    raw += program * chunk * C64 + channel
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    maps += k * L
    x_dbl += batch * p_batch + k * (R + 2 * N)
    project(x_dbl, p_position, maps, dt_weight + at * R, inside, j * chunk, L, tiles, R, raw, C, T, RB)
    for i in range(tiles):
        step = j * chunk + i * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + step, mask=live, other=0).to(tl.int32)
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the states that the tile before left are in place
        delta = tl.where(mask, softplus(step_sizes(raw + i * T * C, C, bias, inside, T)), 0.0)
        places = batch * x_batch + position[:, None].to(tl.int64) * x_position + channel[None, :]
        u = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        merged = tl.zeros([T, BC], tl.float32)
        if ENDS:
            sums += tl.sum(delta, 0)
        else:
            places = batch * y_batch + position[:, None].to(tl.int64) * y_position + channel[None, :]
            if HAS_D:
                merged = u * skip[None, :]
            if ADD:
                merged += tl.load(y_before + places, mask=mask, other=0.0)
        B = x_dbl + position.to(tl.int64) * p_position + R
        merged = scan_tile(
            merged, delta, u, live, inside, A + at * N, B, B, N, 1, 1,
            kept, kept, kept_step, kept_step, N, not ENDS,
        )  # fmt: skip
        if not ENDS:
            tl.store(y + places, merged.to(y.dtype.element_ty), mask=mask)
    if ENDS:
        tl.store(total + (batch * chunks + j) * KC + at, sums, mask=inside)
