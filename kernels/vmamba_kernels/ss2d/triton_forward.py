"""The forward kernel of ss2d in Triton: a program computes one chunk of one direction for a block of channels.

B batch, L = H*W, C channels, K directions, R rank, N states, J = K * (R + 2N). See docs/kernels/ss2d_triton.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..selective_scan.triton_tile import copy_state, scan_tile
from ..triton_math import softplus

# Strides over rows stay unknown to the compiler: knowing them it would make wider loads, and lose the layout in which a
# thread holds all steps of its channels and a scan costs nothing.
NOT_SPECIALIZED = ("L C R images chunk first_k x_batch x_position p_batch p_position y_batch y_position").split()


@triton.jit
def step_sizes(raw, row_step, mask, T: tl.constexpr):
    """delta of a tile, 0 at steps that do not exist, and what it was before its softplus: [T, BC]."""
    before = tl.load(raw[None, :] + tl.arange(0, T)[:, None] * row_step, mask=mask, other=0.0)
    return tl.where(mask, softplus(before), 0.0), before


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward_kernel(
    x, x_dbl, A, D, maps, states, total, carry, raw, y_before, y,
    L, C, R, N, K, images, chunk, first_k,
    x_batch, x_position, p_batch, p_position, y_batch, y_position,
    HAS_D: tl.constexpr, ENDS: tl.constexpr, ADD: tl.constexpr, T: tl.constexpr, BC: tl.constexpr,
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

    raw += ((k * images + batch) * chunks + j) * chunk * C64 + channel
    tiles = tl.cdiv(tl.minimum(chunk, L - j * chunk), T)
    maps += k * L
    x_dbl += batch * p_batch + k * (R + 2 * N)
    for i in range(tiles):
        step = j * chunk + i * T + tl.arange(0, T)
        live = step < L
        position = tl.load(maps + step, mask=live, other=0).to(tl.int32)
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the states that the tile before left are in place
        delta, _ = step_sizes(raw + i * T * C, C, mask, T)
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
