"""The Triton kernels of the state-space dual scan: what one program of each computes.

The names and formulas are those of `chunked.py`; Q steps of a chunk, tiles of BP channels and BN states that cover P
and N. Sequences are stored as declared by their strides with the last axis dense; step sizes and sums of the decay as
[B, H, c * Q] and states as [B, c, H, P, N], all dense, in float32. Everything is computed in float32.
"""

import triton
import triton.language as tl

from ..triton_math import softplus, softplus_slope


@triton.jit
def load_rows(base, stride, t, inside, column, columns):
    """The tile [Q, columns] of rows t, in float32; 0 beyond the sequence and beyond the columns."""
    mask = inside[:, None] & (column < columns)[None, :]
    return tl.load(base + t[:, None] * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def steps_kernel(
    dt, bias, A, size, high, low,
    dt_batch, dt_time, dt_head, length, chunks, heads, dt_min, dt_max,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, Q: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Step sizes, and the sums of the decay as two float32 numbers, of one chunk of BH heads."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(heads, BH)
    h = pid % blocks * BH + tl.arange(0, BH)
    chunk = pid // blocks % chunks
    b = pid // blocks // chunks
    t = chunk * Q + tl.arange(0, Q)
    present = h < heads
    inside = (t < length)[:, None] & present[None, :]
    raw = tl.load(dt + b * dt_batch + t[:, None] * dt_time + h[None, :] * dt_head, mask=inside, other=0.0)
    raw = raw.to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias + h, mask=present, other=0.0)[None, :]
    if SOFTPLUS:
        raw = softplus(raw)
    step = tl.where(raw < dt_min, dt_min, tl.where(raw > dt_max, dt_max, raw))
    step = tl.where(inside, step, 0.0)
    decay = step * tl.load(A + h, mask=present, other=0.0)[None, :]
    sums = tl.cumsum(decay.to(tl.float64), axis=0)
    rounded = sums.to(tl.float32)
    at = (b * heads + h)[None, :] * (chunks * Q) + t[:, None]
    tl.store(size + at, step, mask=present[None, :])
    tl.store(high + at, rounded, mask=present[None, :])
    tl.store(low + at, (sums - rounded.to(tl.float64)).to(tl.float32), mask=present[None, :])


@triton.jit
def chunk_states_kernel(
    value, projection, size, high, low, states,
    value_batch, value_time, value_head, projection_batch, projection_time, projection_group,
    length, chunks, heads, per_group, P, N,
    TO_END: tl.constexpr, PRECISION: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What one chunk adds to the state of a head: the sum over its steps of weight * value * projection^T.

    TO_END: the forward, with weight s exp(cs_Q - cs); else the gradient of the state before, with weight exp(cs).
    """
    pid = tl.program_id(0).to(tl.int64)
    columns = tl.cdiv(N, BN)
    tiles = tl.cdiv(P, BP) * columns
    n = pid % columns * BN + tl.arange(0, BN)
    p = pid % tiles // columns * BP + tl.arange(0, BP)
    h = pid // tiles % heads
    chunk = pid // tiles // heads % chunks
    b = pid // tiles // heads // chunks
    t = chunk * Q + tl.arange(0, Q)
    inside = t < length
    v = load_rows(value + b * value_batch + h * value_head, value_time, t, inside, p, P)
    from_group = projection + b * projection_batch + h // per_group * projection_group
    k = load_rows(from_group, projection_time, t, inside, n, N)
    line = (b * heads + h) * (chunks * Q)
    cs = tl.load(high + line + t)
    if TO_END:
        end = line + chunk * Q + Q - 1
        weight = tl.exp((tl.load(high + end) - cs) + (tl.load(low + end) - tl.load(low + line + t)))
        weight *= tl.load(size + line + t)
    else:
        weight = tl.exp(cs)
    gained = tl.dot(tl.trans(v * weight[:, None]), k, input_precision=PRECISION)
    at = (((b * chunks + chunk) * heads + h) * P + p)[:, None] * N + n[None, :]
    tl.store(states + at, gained, mask=(p < P)[:, None] & (n < N)[None, :])


@triton.jit
def pass_states_kernel(
    states, first, last, high, chunks, heads, numel,
    REVERSE: tl.constexpr, HAS_FIRST: tl.constexpr, Q: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The recurrence over the chunks, in place: what each adds becomes the state before, or the gradient after it."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(numel, BLOCK)
    i = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    h = pid // blocks % heads
    b = pid // blocks // heads
    mask = i < numel
    if HAS_FIRST:
        state = tl.load(first + (b * heads + h) * numel + i, mask=mask, other=0.0)
    else:
        state = tl.zeros([BLOCK], dtype=tl.float32)
    for step in range(chunks):
        chunk = chunks - 1 - step if REVERSE else step
        at = ((b * chunks + chunk) * heads + h) * numel + i
        gained = tl.load(states + at, mask=mask, other=0.0)
        tl.store(states + at, state, mask=mask)
        end = tl.load(high + (b * heads + h) * (chunks * Q) + chunk * Q + Q - 1)
        state = tl.exp(end) * state + gained
    tl.store(last + (b * heads + h) * numel + i, state, mask=mask)


@triton.jit
def decays_within(high, low, at, t):
    """exp(cs_t - cs_s) [Q, Q] for s <= t, else 0."""
    cs, cs_low = tl.load(high + at), tl.load(low + at)
    decays = tl.exp((cs[:, None] - cs[None, :]) + (cs_low[:, None] - cs_low[None, :]))
    return tl.where(t[:, None] >= t[None, :], decays, 0.0)


@triton.jit
def products_within(
    from_B, from_C, B_time, C_time, t, inside, N,
    PRECISION: tl.constexpr, Q: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """C B^T [Q, Q], by tiles of the states."""
    products = tl.zeros([Q, Q], dtype=tl.float32)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN)
        wide_B = load_rows(from_B, B_time, t, inside, n, N)
        wide_C = load_rows(from_C, C_time, t, inside, n, N)
        products = tl.dot(wide_C, tl.trans(wide_B), products, input_precision=PRECISION)
    return products


@triton.jit
def load_state(states, row, p, n, P, N):
    """The tile [BP, BN] of a state that starts at a row of N numbers."""
    mask = (p < P)[:, None] & (n < N)[None, :]
    return tl.load(states + (row + p)[:, None] * N + n[None, :], mask=mask, other=0.0)


@triton.jit
def outputs_kernel(
    x, B, C, D, size, high, low, states, y,
    x_batch, x_time, x_head, B_batch, B_time, B_group, C_batch, C_time, C_group,
    length, chunks, heads, per_group, per_program, P, N,
    HAS_D: tl.constexpr, PRECISION: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The outputs of one chunk of `per_program` heads of one group: the product C B^T is theirs in common."""
    pid = tl.program_id(0).to(tl.int64)
    programs = heads // per_program
    head = pid % programs * per_program
    chunk = pid // programs % chunks
    b = pid // programs // chunks
    t = chunk * Q + tl.arange(0, Q)
    inside = t < length
    from_B = B + b * B_batch + head // per_group * B_group
    from_C = C + b * C_batch + head // per_group * C_group
    products = products_within(from_B, from_C, B_time, C_time, t, inside, N, PRECISION, Q, BN)
    for h in range(head, head + per_program):
        at = (b * heads + h) * (chunks * Q) + t
        weights = products * decays_within(high, low, at, t)
        for tile in range(tl.cdiv(P, BP)):
            p = tile * BP + tl.arange(0, BP)
            out = tl.zeros([Q, BP], dtype=tl.float32)
            for first in range(0, N, BN):
                n = first + tl.arange(0, BN)
                before = load_state(states, ((b * chunks + chunk) * heads + h) * P, p, n, P, N)
                wide_C = load_rows(from_C, C_time, t, inside, n, N)
                out = tl.dot(wide_C, tl.trans(before), out, input_precision=PRECISION)
            out *= tl.exp(tl.load(high + at))[:, None]
            wide_x = load_rows(x + b * x_batch + h * x_head, x_time, t, inside, p, P)
            out = tl.dot(weights, wide_x * tl.load(size + at)[:, None], out, input_precision=PRECISION)
            if HAS_D:
                out += tl.load(D + h * P + p, mask=p < P, other=0.0)[None, :] * wide_x
            y_at = ((b * length + t) * heads + h)[:, None] * P + p[None, :]
            tl.store(y + y_at, out.to(y.dtype.element_ty), mask=inside[:, None] & (p < P)[None, :])


@triton.jit
def head_gradients_kernel(
    dy, x, B, C, D, size, high, low, states, grads, dx, dD, dsize, da, da_next,
    dy_batch, dy_time, dy_head, x_batch, x_time, x_head, B_batch, B_time, B_group, C_batch, C_time, C_group,
    length, chunks, heads, per_group, per_program, P, N,
    HAS_D: tl.constexpr, PRECISION: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The gradients that belong to a head, of one chunk of `per_program` heads of one group.

    The gradient of the logarithm of the decay comes in two parts, `da` of step t and `da_next` of step t + 1, which
    `step_gradients_kernel` adds. dD [B, c, H, P] is by chunk.
    """
    pid = tl.program_id(0).to(tl.int64)
    programs = heads // per_program
    head = pid % programs * per_program
    chunk = pid // programs % chunks
    b = pid // programs // chunks
    t = chunk * Q + tl.arange(0, Q)
    inside = t < length
    from_B = B + b * B_batch + head // per_group * B_group
    from_C = C + b * C_batch + head // per_group * C_group
    products = products_within(from_B, from_C, B_time, C_time, t, inside, N, PRECISION, Q, BN)
    for h in range(head, head + per_program):
        line = (b * heads + h) * (chunks * Q)
        at = line + t
        end = line + chunk * Q + Q - 1
        weights = products * decays_within(high, low, at, t)
        step = tl.load(size + at)
        pairs = tl.zeros([Q, Q], dtype=tl.float32)
        pushed = tl.zeros([Q], dtype=tl.float32)
        gained = tl.zeros([Q], dtype=tl.float32)
        dstep = tl.zeros([Q], dtype=tl.float32)
        through = 0.0
        for tile in range(tl.cdiv(P, BP)):
            p = tile * BP + tl.arange(0, BP)
            carried = tl.zeros([Q, BP], dtype=tl.float32)
            pulled = tl.zeros([Q, BP], dtype=tl.float32)
            for first in range(0, N, BN):
                n = first + tl.arange(0, BN)
                before = load_state(states, ((b * chunks + chunk) * heads + h) * P, p, n, P, N)
                after = load_state(grads, ((b * chunks + chunk) * heads + h) * P, p, n, P, N)
                through += tl.sum(tl.sum(before * after, axis=1), axis=0)
                wide_C = load_rows(from_C, C_time, t, inside, n, N)
                carried = tl.dot(wide_C, tl.trans(before), carried, input_precision=PRECISION)
                wide_B = load_rows(from_B, B_time, t, inside, n, N)
                pulled = tl.dot(wide_B, tl.trans(after), pulled, input_precision=PRECISION)
            wide_dy = load_rows(dy + b * dy_batch + h * dy_head, dy_time, t, inside, p, P)
            pushed += tl.sum(wide_dy * carried, axis=1)
            to_end = tl.exp((tl.load(high + end) - tl.load(high + at)) + (tl.load(low + end) - tl.load(low + at)))
            pulled *= to_end[:, None]
            wide_x = load_rows(x + b * x_batch + h * x_head, x_time, t, inside, p, P)
            gained += tl.sum(wide_x * pulled, axis=1)
            pairs = tl.dot(wide_dy, tl.trans(wide_x * step[:, None]), pairs, input_precision=PRECISION)
            du = tl.dot(tl.trans(weights), wide_dy, pulled, input_precision=PRECISION)
            dstep += tl.sum(du * wide_x, axis=1)
            du *= step[:, None]
            if HAS_D:
                du += tl.load(D + h * P + p, mask=p < P, other=0.0)[None, :] * wide_dy
                dD_at = ((b * chunks + chunk) * heads + h) * P + p
                tl.store(dD + dD_at, tl.sum(wide_dy * wide_x, axis=0), mask=p < P)
            dx_at = ((b * length + t) * heads + h)[:, None] * P + p[None, :]
            tl.store(dx + dx_at, du.to(dx.dtype.element_ty), mask=inside[:, None] & (p < P)[None, :])

        ahead = tl.cumsum(pairs * weights, axis=1)
        ahead = tl.sum(tl.where(t[:, None] > t[None, :], ahead, 0.0), axis=0) + tl.cumsum(gained * step, axis=0)
        tl.store(da_next + at, ahead)
        pushed = tl.cumsum(pushed * tl.exp(tl.load(high + at)), axis=0, reverse=True)
        tl.store(da + at, pushed + tl.exp(tl.load(high + end)) * through)
        tl.store(dsize + at, dstep)


@triton.jit
def group_gradients_kernel(
    dy, x, B, C, size, high, low, states, grads, dB, dC,
    dy_batch, dy_time, dy_head, x_batch, x_time, x_head, B_batch, B_time, B_group, C_batch, C_time, C_group,
    length, chunks, heads, groups, per_group, per_program, P, N,
    PRECISION: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dB and dC [B, splits, L, G, N] of one chunk and BN states: sums over `per_program` heads of one group."""
    pid = tl.program_id(0).to(tl.int64)
    columns = tl.cdiv(N, BN)
    n = pid % columns * BN + tl.arange(0, BN)
    programs = heads // per_program
    head = pid // columns % programs * per_program
    chunk = pid // columns // programs % chunks
    b = pid // columns // programs // chunks
    group = head // per_group
    t = chunk * Q + tl.arange(0, Q)
    inside = t < length
    dproducts = tl.zeros([Q, Q], dtype=tl.float32)
    dB_sum = tl.zeros([Q, BN], dtype=tl.float32)
    dC_sum = tl.zeros([Q, BN], dtype=tl.float32)
    for h in range(head, head + per_program):
        line = (b * heads + h) * (chunks * Q)
        at = line + t
        end = line + chunk * Q + Q - 1
        pairs = tl.zeros([Q, Q], dtype=tl.float32)
        for tile in range(tl.cdiv(P, BP)):
            p = tile * BP + tl.arange(0, BP)
            wide_dy = load_rows(dy + b * dy_batch + h * dy_head, dy_time, t, inside, p, P)
            u = load_rows(x + b * x_batch + h * x_head, x_time, t, inside, p, P) * tl.load(size + at)[:, None]
            pairs = tl.dot(wide_dy, tl.trans(u), pairs, input_precision=PRECISION)
            before = load_state(states, ((b * chunks + chunk) * heads + h) * P, p, n, P, N)
            pushed = wide_dy * tl.exp(tl.load(high + at))[:, None]
            dC_sum = tl.dot(pushed, before, dC_sum, input_precision=PRECISION)
            to_end = tl.exp((tl.load(high + end) - tl.load(high + at)) + (tl.load(low + end) - tl.load(low + at)))
            after = load_state(grads, ((b * chunks + chunk) * heads + h) * P, p, n, P, N)
            dB_sum = tl.dot(u * to_end[:, None], after, dB_sum, input_precision=PRECISION)
        dproducts += pairs * decays_within(high, low, at, t)
    split = head % per_group // per_program
    row = ((b * (per_group // per_program) + split) * length + t) * groups + group
    out_at = row[:, None] * N + n[None, :]
    out_mask = inside[:, None] & (n < N)[None, :]
    wide_B = load_rows(B + b * B_batch + group * B_group, B_time, t, inside, n, N)
    dC_sum = tl.dot(dproducts, wide_B, dC_sum, input_precision=PRECISION)
    tl.store(dC + out_at, dC_sum.to(dC.dtype.element_ty), mask=out_mask)
    wide_C = load_rows(C + b * C_batch + group * C_group, C_time, t, inside, n, N)
    dB_sum = tl.dot(tl.trans(dproducts), wide_C, dB_sum, input_precision=PRECISION)
    tl.store(dB + out_at, dB_sum.to(dB.dtype.element_ty), mask=out_mask)


@triton.jit
def step_gradients_kernel(
    dt, bias, A, size, dsize, da, da_next, ddt, dA, dbias,
    dt_batch, dt_time, dt_head, length, chunks, heads, dt_min, dt_max,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, Q: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """The gradient of dt [B, L, H], and the shares [B, c, H] of one chunk of BH heads in those of A and dt_bias."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(heads, BH)
    h = pid % blocks * BH + tl.arange(0, BH)
    chunk = pid // blocks % chunks
    b = pid // blocks // chunks
    q = tl.arange(0, Q)
    t = chunk * Q + q
    present = h < heads
    inside = (t < length)[:, None] & present[None, :]
    at = (b * heads + h)[None, :] * (chunks * Q) + t[:, None]
    decay = tl.load(da + at, mask=inside, other=0.0)
    decay += tl.load(da_next + at - 1, mask=inside & (q > 0)[:, None], other=0.0)
    step = tl.load(size + at, mask=inside, other=0.0)
    grad = tl.load(dsize + at, mask=inside, other=0.0)
    grad += decay * tl.load(A + h, mask=present, other=0.0)[None, :]
    raw = tl.load(dt + b * dt_batch + t[:, None] * dt_time + h[None, :] * dt_head, mask=inside, other=0.0)
    raw = raw.to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias + h, mask=present, other=0.0)[None, :]
    softened = raw
    if SOFTPLUS:
        softened = softplus(raw)
    grad = tl.where((softened < dt_min) | (softened > dt_max), 0.0, grad)
    if SOFTPLUS:
        grad *= softplus_slope(raw)
    tl.store(ddt + ((b * length + t)[:, None] * heads + h[None, :]), grad.to(ddt.dtype.element_ty), mask=inside)
    share = (b * chunks + chunk) * heads + h
    tl.store(dA + share, tl.sum(decay * step, axis=0), mask=present)
    if HAS_BIAS:
        tl.store(dbias + share, tl.sum(grad, axis=0), mask=present)
