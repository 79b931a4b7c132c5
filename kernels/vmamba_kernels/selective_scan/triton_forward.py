"""The forward kernel of the selective scan in Triton: a program has one chunk of one group and a block of channels.

B images, K groups of `width` channels, KC of all, L length, N states; rows [B, K, L, 2, N] are B and C side by side.
Sequences have their channels side by side, and delta one for each channel of u. See
docs/kernels/selective_scan_triton.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_math import softplus
from .triton_tile import copy_state, scan_tile

# Strides over steps stay unknown to the compiler: knowing them it would make wider loads, and lose the layout in which
# a thread holds all steps of its channels and a scan costs nothing.
NOT_SPECIALIZED = ("L K width chunk u_batch u_step delta_batch delta_step y_batch y_step").split()


@triton.jit
def program_of(K, parts):
    """The group, the image and the number of this program's part; grid axis 0 has B * parts * K programs."""
    program = tl.program_id(0) // K
    return (tl.program_id(0) % K).to(tl.int64), (program // parts).to(tl.int64), program % parts


@triton.jit
def rows_of(x, first, x_step, T: tl.constexpr):
    """Pointers to the steps from `first` on, [T] or [T, BC] as x is one or [BC]; T steps fit 32 bits (`near`)."""
    at = x + first.to(tl.int64) * x_step
    steps = tl.arange(0, T) * x_step
    return at + steps if len(x.shape) == 0 else at[None, :] + steps[:, None]


@triton.jit
def step_sizes(delta, bias, mask, SOFTPLUS: tl.constexpr):
    """The step sizes of a tile, 0 where it has none, and what they were before softplus."""
    raw = tl.load(delta, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    sizes = raw
    if SOFTPLUS:
        sizes = softplus(raw)
    return tl.where(mask, sizes, 0.0), raw


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward_kernel(
    u, delta, A, rows, D, delta_bias, states, total, carry, y, L, N, K, width, chunk,
    u_batch, u_step, delta_batch, delta_step,
    y_batch, y_step,
    HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, ENDS: tl.constexpr,
    T: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """ENDS: the states [B, chunks - 1, N, KC] that the chunks but the last leave when they enter with zeros, and the
    sums of delta over them, total [B, chunks, KC]. Else y, from the true states; carry [B, chunks, N, KC] then holds
    the states after each chunk.
    """
    chunks = tl.cdiv(L, chunk)
    group, batch, j = program_of(K, chunks - 1 if ENDS else chunks)
    inside = tl.program_id(1) * BC + tl.arange(0, BC) < width
    KC = K.to(tl.int64) * width
    channel = group * width + tl.program_id(1) * BC + tl.arange(0, BC)
    bias = tl.zeros([BC], tl.float32)
    if HAS_BIAS:
        bias = tl.load(delta_bias + channel, mask=inside, other=0.0)
    if HAS_D:
        skip = tl.load(D + channel, mask=inside, other=0.0)
    slot = (batch * (chunks - 1) + j) * N * KC + channel  # of the state at the end of the chunk
    if ENDS:
        kept = states + slot
        copy_state(kept, kept, False, inside, KC, KC, N)
        sums = tl.zeros([BC], tl.float32)
    else:
        kept = carry + (batch * chunks + j) * N * KC + channel
        copy_state(states + slot - N * KC, kept, j > 0, inside, KC, KC, N)
    u += batch * u_batch + channel
    delta += batch * delta_batch + channel
    y += batch * y_batch + channel
    rows += (batch * K + group) * L * 2 * N
    for i in range(tl.cdiv(tl.minimum(chunk, L - j * chunk), T)):
        first = j * chunk + i * T
        step = first + tl.arange(0, T)
        live = step < L
        mask = live[:, None] & inside[None, :]
        tl.debug_barrier()  # the states that the tile before left are in place
        places = rows_of(delta, first, delta_step, T)
        sizes, _ = step_sizes(places, bias, mask, SOFTPLUS)
        places = rows_of(u, first, u_step, T)
        u_tile = tl.load(places, mask=mask, other=0.0).to(tl.float32)
        out = tl.zeros([T, BC], tl.float32)
        if ENDS:
            sums += tl.sum(sizes, 0)
        elif HAS_D:
            out = u_tile * skip[None, :]
        row = rows_of(rows, first, 2 * N, T)
        out = scan_tile(
            out, sizes, u_tile, live, inside, A + channel * N, row, row, N, 1, 1, kept, kept, KC, KC, N, not ENDS,
        )  # fmt: skip
        if not ENDS:
            places = rows_of(y, first, y_step, T)
            tl.store(places, out.to(y.dtype.element_ty), mask=mask)
    if ENDS:
        tl.store(total + (batch * chunks + j) * KC + channel, sums, mask=inside)
