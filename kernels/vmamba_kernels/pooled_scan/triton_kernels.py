"""The pooled scan's kernels in Triton: the pooled recurrence and its gradient, and the two passes over the tokens.

B batch, K groups of D channels, KD = K*D, P pooled steps, N states. A program owns WIDTH channels of one group of one
image. Everything is computed in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_math import LOG2E, softplus, softplus_slope


@triton.jit
def _combine(decay, value, next_decay, next_value):
    return decay * next_decay, value * next_decay + next_value


@triton.jit
def scan_kernel(
    u, delta, A, B, C, bias, z, states,
    u_b, u_c, u_t, delta_b, delta_c, delta_t, B_b, B_k, B_n, B_t, C_b, C_k, C_n, C_t,
    batch, groups, channels, steps, N, ratio, reverse,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, STATES: tl.constexpr,
    SOFTPLUS: tl.constexpr, BIAS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """z [B, P, KD] and, if KEEP, the state before each chunk but the first, [K, B, chunks - 1, N, D]."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, WIDTH)
    k = pid // blocks % groups
    b = (pid // blocks // groups).to(tl.int64)
    c = pid % blocks * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    channel = (k * channels + c).to(tl.int64)
    delta_channel = channel // ratio
    n = tl.arange(0, STATES).to(tl.int64)
    both = (n < N)[:, None] & inside[None, :]
    A2 = tl.load(A + channel[None, :] * N + n[:, None], mask=both, other=0.0) * LOG2E
    offset = tl.zeros([WIDTH], tl.float32)
    if BIAS:
        offset = tl.load(bias + delta_channel, mask=inside, other=0.0)
    back = ((reverse >> k) & 1) != 0
    h = tl.zeros([STATES, WIDTH], tl.float32)
    kept = tl.cdiv(steps, CHUNK) - 1
    for s in range(steps):
        t = tl.where(back, steps - 1 - s, s).to(tl.int64)
        if KEEP:
            if (s > 0) & (s % CHUNK == 0):
                place = (k.to(tl.int64) * batch + b) * kept + s // CHUNK - 1
                tl.store(states + (place * N + n)[:, None] * channels + c[None, :], h, mask=both)
        x = tl.load(u + b * u_b + channel * u_c + t * u_t, mask=inside, other=0.0).to(tl.float32)
        dt = tl.load(delta + b * delta_b + delta_channel * delta_c + t * delta_t, mask=inside, other=0.0)
        dt = dt.to(tl.float32) + offset
        if SOFTPLUS:
            dt = softplus(dt)
        B_t_ = tl.load(B + b * B_b + k.to(tl.int64) * B_k + n * B_n + t * B_t, mask=n < N, other=0.0).to(tl.float32)
        C_t_ = tl.load(C + b * C_b + k.to(tl.int64) * C_k + n * C_n + t * C_t, mask=n < N, other=0.0).to(tl.float32)
        h = tl.exp2(dt[None, :] * A2) * h + (dt * x)[None, :] * B_t_[:, None]
        tl.store(z + (b * steps + t) * groups * channels + channel, tl.sum(h * C_t_[:, None], 0), mask=inside)


@triton.jit
def _step_sizes(delta, base, offset, t, mask, delta_t, SOFTPLUS: tl.constexpr):
    """(delta + bias, step size) of a tile; steps that do not exist have the size 0."""
    raw = tl.load(delta + base[None, :] + t[:, None] * delta_t, mask=mask, other=0.0).to(tl.float32) + offset[None, :]
    dt = raw
    if SOFTPLUS:
        dt = softplus(raw)
    return raw, tl.where(mask, dt, 0.0)


@triton.jit
def scan_backward_kernel(
    dz, u, delta, A, B, C, bias, states, du, ddelta, dA, dbias, dBC, carry,
    dz_k, u_b, u_c, u_t, delta_b, delta_c, delta_t, B_b, B_k, B_n, B_t, C_b, C_k, C_n, C_t,
    du_b, du_c, du_t, ddelta_b, ddelta_c, ddelta_t,
    batch, groups, channels, steps, N, ratio, reverse, dz_width,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, SOFTPLUS: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Gradients of one image: dA [B, N, KD], dbias [B, KD], dBC [2, blocks, B, K, N, P]; du and ddelta whole.

    dz is [B, P, dz_width]; `carry` [B, N, KD] holds the gradient of the state between chunks.
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, WIDTH)
    block = pid % blocks
    k = pid // blocks % groups
    b = (pid // blocks // groups).to(tl.int64)
    c = block * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    channel = (k * channels + c).to(tl.int64)
    delta_channel = channel // ratio
    KD = groups * channels
    offset = tl.zeros([WIDTH], tl.float32)
    if BIAS:
        offset = tl.load(bias + delta_channel, mask=inside, other=0.0)
    row = tl.arange(0, CHUNK)
    chunks = tl.cdiv(steps, CHUNK)
    dbias_sum = tl.zeros([WIDTH], tl.float32)
    back = ((reverse >> k) & 1) != 0
    u_at = b * u_b + channel * u_c
    delta_at = b * delta_b + delta_channel * delta_c
    for i in range(chunks):
        chunk = chunks - 1 - i
        s = chunk * CHUNK + row
        t = tl.where(back, steps - 1 - s, s).to(tl.int64)
        before = tl.where(back, t + 1, t - 1)
        after = tl.where(back, t - 1, t + 1)
        here = (s < steps)[:, None] & inside[None, :]
        earlier = (row > 0)[:, None] & here
        later = ((s + 1 < steps) & (row + 1 < CHUNK))[:, None] & inside[None, :]
        raw, dt = _step_sizes(delta, delta_at, offset, t, here, delta_t, SOFTPLUS)
        _, dt_before = _step_sizes(delta, delta_at, offset, before, earlier, delta_t, SOFTPLUS)
        _, dt_after = _step_sizes(delta, delta_at, offset, after, later, delta_t, SOFTPLUS)
        x = tl.load(u + u_at[None, :] + t[:, None] * u_t, mask=here, other=0.0).to(tl.float32)
        x_before = tl.load(u + u_at[None, :] + before[:, None] * u_t, mask=earlier, other=0.0).to(tl.float32)
        dy = tl.load(dz + ((b * steps + t) * dz_width)[:, None] + (k * dz_k + c)[None, :], mask=here, other=0.0)
        through_B = tl.zeros([CHUNK, WIDTH], tl.float32)
        through_A = tl.zeros([CHUNK, WIDTH], tl.float32)
        for n in range(N):
            A_n = tl.load(A + channel * N + n, mask=inside, other=0.0)
            at = (b * N + n) * KD + channel
            entering = tl.zeros([WIDTH], tl.float32)
            if chunk > 0:
                place = (k.to(tl.int64) * batch + b) * (chunks - 1) + chunk - 1
                entering = tl.load(states + (place * N + n) * channels + c, mask=inside, other=0.0)
            leaving = tl.zeros([WIDTH], tl.float32)
            dA_n = tl.zeros([WIDTH], tl.float32)
            if i > 0:
                leaving = tl.load(carry + at, mask=inside, other=0.0)
                dA_n = tl.load(dA + at, mask=inside, other=0.0)
            B_at = B + b * B_b + k.to(tl.int64) * B_k + n * B_n
            B_n_ = tl.load(B_at + t * B_t, mask=s < steps, other=0.0).to(tl.float32)[:, None]
            B_before = tl.load(B_at + before * B_t, mask=(row > 0) & (s < steps), other=0.0).to(tl.float32)[:, None]
            C_n_ = tl.load(C + b * C_b + k.to(tl.int64) * C_k + n * C_n + t * C_t, mask=s < steps, other=0.0)
            C_n_ = C_n_.to(tl.float32)[:, None]
            A2 = (A_n * LOG2E)[None, :]
            decay = tl.exp2(dt * A2)
            first = (row == 0)[:, None]
            pushed = tl.where(first, entering[None, :], dt_before * x_before * B_before)
            _, h_before = tl.associative_scan((tl.exp2(dt_before * A2), pushed), 0, _combine)
            h = decay * h_before + dt * x * B_n_
            last = (row == CHUNK - 1)[:, None]
            pulled = C_n_ * dy + tl.where(last, leaving[None, :], 0.0)
            _, g = tl.associative_scan((tl.exp2(dt_after * A2), pulled), 0, _combine, reverse=True)
            through_B += g * B_n_
            passed = g * decay
            moved = passed * h_before
            through_A += moved * A_n[None, :]
            tl.debug_barrier()  # dA and carry were read in another layout than they are written in
            tl.store(dA + at, dA_n + tl.sum(moved * dt, 0), mask=inside)
            tl.store(carry + at, tl.sum(tl.where(first, passed, 0.0), 0), mask=inside)
            part = dBC + (((block * batch + b) * groups + k) * N + n) * steps + t
            tl.store(part, tl.sum(g * dt * x, 1), mask=s < steps)
            total = tl.num_programs(0).to(tl.int64) * N
            tl.store(part + total * steps, tl.sum(dy * h, 1), mask=s < steps)
        tl.store(du + (b * du_b + channel * du_c)[None, :] + t[:, None] * du_t, through_B * dt, mask=here)
        slope = tl.zeros([CHUNK, WIDTH], tl.float32) + 1.0
        if SOFTPLUS:
            slope = softplus_slope(raw)
        gradient = tl.where(here, (through_B * x + through_A) * slope, 0.0)
        tl.store(ddelta + (b * ddelta_b + channel * ddelta_c)[None, :] + t[:, None] * ddelta_t, gradient, mask=here)
        dbias_sum += tl.sum(gradient, 0)
        tl.debug_barrier()
    tl.store(dbias + b * KD + channel, dbias_sum, mask=inside)


@triton.jit
def expand_kernel(
    u, D, z, y,
    u_b, u_k, u_line, y_b, y_line,
    groups, channels, tokens, steps, inner, pool2, pool,
    ADDED: tl.constexpr, SKIP: tl.constexpr, CHANNEL_LAST: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y = z of each token's step + D u, the mean over ADDED groups. `line`: the stride of tokens, or of channels."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, WIDTH)
    pieces = tl.cdiv(tokens, TOKENS)
    image = pid // blocks // pieces
    first = image % (groups // ADDED)
    b = (image // (groups // ADDED)).to(tl.int64)
    c = pid % blocks * WIDTH + tl.arange(0, WIDTH)
    token = pid // blocks % pieces * TOKENS + tl.arange(0, TOKENS)
    step = token // (pool * inner) * inner + token // pool2 % inner
    here = (token < tokens)[:, None] & (c < channels)[None, :]
    KD = groups * channels
    sum = tl.zeros([TOKENS, WIDTH], tl.float32)
    for i in tl.static_range(ADDED):
        channel = (first + i) * channels + c
        sum += tl.load(z + ((b * steps + step) * KD)[:, None] + channel[None, :], mask=here, other=0.0)
        if SKIP:
            if CHANNEL_LAST:
                at = (token.to(tl.int64) * u_line)[:, None] + c[None, :]
            else:
                at = token[:, None] + (c.to(tl.int64) * u_line)[None, :]
            x = tl.load(u + b * u_b + (first + i).to(tl.int64) * u_k + at, mask=here, other=0.0).to(tl.float32)
            skip = tl.load(D + channel, mask=c < channels, other=0.0)
            sum += skip[None, :] * x
    place = first * channels + c
    if CHANNEL_LAST:
        at = (token.to(tl.int64) * y_line)[:, None] + place[None, :]
    else:
        at = token[:, None] + (place.to(tl.int64) * y_line)[None, :]
    tl.store(y + b * y_b + at, (sum * (1.0 / ADDED)).to(y.dtype.element_ty), mask=here)


@triton.jit
def gather_kernel(
    dy, u, D, du, dz, dD,
    dy_b, dy_line, u_b, u_k, u_line, du_b, du_k, du_line,
    groups, channels, steps, inner, pool1, pool2, splits,
    ADDED: tl.constexpr, SKIP: tl.constexpr, CHANNEL_LAST: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dz [B, P, D or KD], the sum over the tokens of a step; du; dD [B, splits, KD], of the steps of each split."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, WIDTH)
    split = pid // blocks % splits
    image = pid // blocks // splits
    first = image % (groups // ADDED)
    b = (image // (groups // ADDED)).to(tl.int64)
    c = pid % blocks * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    KD = groups * channels
    place = first * channels + c
    pool = pool1 * pool2
    D_0 = tl.zeros([WIDTH], tl.float32)
    D_1 = tl.zeros([WIDTH], tl.float32)
    if SKIP:
        D_0 = tl.load(D + place, mask=inside, other=0.0)
        if ADDED == 2:
            D_1 = tl.load(D + channels + c, mask=inside, other=0.0)
    dD_0 = tl.zeros([TOKENS, WIDTH], tl.float32)
    dD_1 = tl.zeros([TOKENS, WIDTH], tl.float32)
    split64 = split.to(tl.int64)
    for p in range((split64 * steps // splits).to(tl.int32), ((split64 + 1) * steps // splits).to(tl.int32)):
        dz_sum = tl.zeros([TOKENS, WIDTH], tl.float32)
        for start in range(0, pool, TOKENS):
            i = start + tl.arange(0, TOKENS)
            token = ((p // inner * pool1 + i // pool2) * inner + p % inner) * pool2 + i % pool2
            here = (i < pool)[:, None] & inside[None, :]
            if CHANNEL_LAST:
                at = (token.to(tl.int64) * dy_line)[:, None] + place[None, :]
            else:
                at = token[:, None] + (place.to(tl.int64) * dy_line)[None, :]
            g = tl.load(dy + b * dy_b + at, mask=here, other=0.0).to(tl.float32) * (1.0 / ADDED)
            dz_sum += g
            if SKIP:
                for k in tl.static_range(ADDED):
                    group = (first + k).to(tl.int64)
                    if CHANNEL_LAST:
                        from_ = (token.to(tl.int64) * u_line)[:, None] + c[None, :]
                        to = (token.to(tl.int64) * du_line)[:, None] + c[None, :]
                    else:
                        from_ = token[:, None] + (c.to(tl.int64) * u_line)[None, :]
                        to = token[:, None] + (c.to(tl.int64) * du_line)[None, :]
                    x = tl.load(u + b * u_b + group * u_k + from_, mask=here, other=0.0).to(tl.float32)
                    if k == 0:
                        dD_0 += g * x
                        gradient = g * D_0[None, :]
                    else:
                        dD_1 += g * x
                        gradient = g * D_1[None, :]
                    tl.store(du + b * du_b + group * du_k + to, gradient.to(du.dtype.element_ty), mask=here)
        width = groups // ADDED * channels
        tl.store(dz + (b * steps + p) * width + place, tl.sum(dz_sum, 0), mask=inside)
    if SKIP:
        row = (b * splits + split) * KD
        tl.store(dD + row + place, tl.sum(dD_0, 0), mask=inside)
        if ADDED == 2:
            tl.store(dD + row + channels + c, tl.sum(dD_1, 0), mask=inside)
