"""The matrix products of ss2d in Triton: from the ranks dt to delta before its softplus, and back.

Kernels of their own, because in the kernels that scan their layouts would spread and their registers would spill. A
program has ROWS steps of one direction. Names as in `triton_forward.py`; raw [K, B * parts, ROWS, C] in float32, where
every image has as many parts as fill its chunks.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOT_SPECIALIZED = "L C R parts p_batch p_position".split()


@triton.jit
def _part(maps, L, parts, k, ROWS: tl.constexpr):
    """The program's image, and of its steps: which exist, and their positions."""
    batch = (tl.program_id(0) // parts).to(tl.int64)
    step = (tl.program_id(0) % parts) * ROWS + tl.arange(0, ROWS)
    live = step < L
    return batch, live, tl.load(maps + k * L + step, mask=live, other=0).to(tl.int64)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def project_kernel(
    x_dbl, dt_weight, delta_bias, maps, raw, L, C, R, N, parts, p_batch, p_position,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    """raw = dt_weight dt + delta_bias, where dt begins each direction's part of a row of x_dbl."""
    k = tl.program_id(2).to(tl.int64)
    batch, live, position = _part(maps, L, parts, k, ROWS)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channel < C
    at = k * C + channel
    rows = x_dbl + batch * p_batch + k * (R + 2 * N) + position * p_position
    sums = tl.zeros([ROWS, BC], tl.float32)
    for start in range(0, R, RB):
        r = start + tl.arange(0, RB)
        ranks = r < R
        w = tl.load(dt_weight + at[None, :] * R + r[:, None], mask=ranks[:, None] & inside[None, :], other=0.0)
        dt = tl.load(rows[:, None] + r[None, :], mask=live[:, None] & ranks[None, :], other=0.0)
        sums = tl.dot(dt.to(tl.float32), w, sums, input_precision="tf32x3")
    if HAS_BIAS:
        sums += tl.load(delta_bias + at, mask=inside, other=0.0)[None, :]
    program = k * tl.num_programs(0) + tl.program_id(0)
    places = (program * ROWS + tl.arange(0, ROWS))[:, None] * C + channel[None, :]
    tl.store(raw + places, sums, mask=inside[None, :])


@triton.jit(do_not_specialize=[*NOT_SPECIALIZED, "d_batch", "d_position"])
def project_back_kernel(
    draw, x_dbl, dt_weight, maps, ddt, d_dt_weight, dbias, L, C, R, N, parts, p_batch, p_position, d_batch, d_position,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    """From draw, the gradient of raw: that of dt into the rows of ddt, laid out as x_dbl is; and of dt_weight and
    delta_bias one sum for each part, [B * parts, *the weight]. A program has RB ranks and all channels.
    """
    k = tl.program_id(2).to(tl.int64)
    batch, live, position = _part(maps, L, parts, k, ROWS)
    r = tl.program_id(1) * RB + tl.arange(0, RB)
    ranks = r < R
    column = k * (R + 2 * N) + r
    mask = live[:, None] & ranks[None, :]
    dt = tl.load(x_dbl + batch * p_batch + position[:, None] * p_position + column[None, :], mask=mask, other=0.0)
    dt = dt.to(tl.float32)
    KC = tl.num_programs(2).to(tl.int64) * C
    program = tl.program_id(0).to(tl.int64)
    draw += (k * tl.num_programs(0) + program) * ROWS * C
    sums = tl.zeros([ROWS, RB], tl.float32)
    for start in range(0, C, BC):
        channel = start + tl.arange(0, BC)
        inside = channel < C
        at = k * C + channel
        places = tl.arange(0, ROWS)[:, None] * C + channel[None, :]
        g = tl.load(draw + places, mask=live[:, None] & inside[None, :], other=0.0)
        weights = at[:, None] * R + r[None, :]
        weight_mask = inside[:, None] & ranks[None, :]
        w = tl.load(dt_weight + weights, mask=weight_mask, other=0.0)
        sums = tl.dot(g, w, sums, input_precision="tf32x3")
        d_w = tl.dot(tl.trans(g), dt, input_precision="tf32x3")
        tl.store(d_dt_weight + program * KC * R + weights, d_w, mask=weight_mask)
        if HAS_BIAS:
            tl.store(dbias + program * KC + at, tl.sum(g, 0), mask=inside & (tl.program_id(1) == 0))
    ddt += batch * d_batch + position[:, None] * d_position + column[None, :]
    tl.store(ddt, sums.to(ddt.dtype.element_ty), mask=mask)
