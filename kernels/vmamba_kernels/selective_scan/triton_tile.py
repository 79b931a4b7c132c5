"""The selective scan of one tile, T steps x BC channels, for Triton kernels: what `ss2d` and `selective_scan` share.

Where T is small and BC fills the warps, a thread holds all steps of its channels, so that a scan along them is a chain
of multiply-adds in registers. Nothing here depends on that: the functions are right for any layout.

Rows are steps in the order of time. Pointers to one state are vectors over channels; the next state is `state_step`
further. `live` says which steps exist, `inside` which channels. Whoever calls puts a barrier between two tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_math import LOG2E


@triton.jit
def _after(p1, s1, p2, s2):
    return p1 * p2, p2 * s1 + s2


@triton.jit
def _before(p1, s1, q1, t1, p2, s2, q2, t2):
    # p h + s is the state after the steps so far, q h + t the state before the last of them.
    return p1 * p2, p2 * s1 + s2, p1 * q2, q2 * s1 + t2


@triton.jit
def states_after(decay, drive, first):
    """x_i = decay_i x_{i-1} + drive_i for each row i, where x_{-1} = first [BC]."""
    row = tl.arange(0, decay.shape[0])[:, None]
    drive = tl.where(row == 0, decay * first[None, :] + drive, drive)
    _, x = tl.associative_scan((decay, drive), 0, _after)
    return x


@triton.jit
def states_before(decay, drive, first):
    """The same x, one row later: row 0 is `first`, row i is x_{i-1}."""
    row = tl.arange(0, decay.shape[0])[:, None]
    drive = tl.where(row == 0, decay * first[None, :] + drive, drive)
    _, _, _, x = tl.associative_scan((decay, drive, tl.zeros_like(decay) + 1.0, tl.zeros_like(decay)), 0, _before)
    return tl.where(row == 0, first[None, :], x)


@triton.jit
def row_of(x, i):
    """Row i of a tile."""
    row = tl.arange(0, x.shape[0])[:, None]
    return tl.sum(tl.where(row == i, x, 0.0), 0)


@triton.jit
def decays(delta, A, live, inside):
    """exp(delta A) for the state at A, 1 at steps that do not exist; and A."""
    a = tl.load(A, mask=inside, other=0.0)
    return tl.where(live[:, None], tl.exp2(delta * (a * LOG2E)[None, :]), 1.0), a


@triton.jit
def copy_state(source, target, exists, inside, source_step, target_step, N):
    """Copies N states, or zeros where they do not exist."""
    for n in range(N):
        h = tl.load(source + n * source_step, mask=inside & exists, other=0.0)
        tl.store(target + n * target_step, h, mask=inside)


@triton.jit
def scan_tile(
    y, delta, u, live, inside, A, B, C, C_start, B_step, C_step, enter, leave, enter_step, leave_step, N,
    OUTPUT: tl.constexpr,
):  # fmt: skip
    """y, with the sum over n of C_n h_n added if OUTPUT; takes the states from `enter` and leaves them at `leave`.

    C_start is a distance from C: where B and C lie in one row, both are reached from one vector of pointers.
    """
    for n in range(N):
        h = tl.load(enter + n * enter_step, mask=inside, other=0.0)
        decay, _ = decays(delta, A + n, live, inside)
        b = tl.load(B + n * B_step, mask=live, other=0.0).to(tl.float32)
        x = states_after(decay, delta * u * b[:, None], h)
        if OUTPUT:
            y += x * tl.load(C + (C_start + n * C_step), mask=live, other=0.0).to(tl.float32)[:, None]
        tl.debug_barrier()  # `leave` may be `enter`
        tl.store(leave + n * leave_step, row_of(x, x.shape[0] - 1), mask=inside)
    return y


@triton.jit
def pull_tile(delta, dy, live, inside, A, C, C_step, carry, carry_step, N):
    """Turns the gradient of the states after the tile, at `carry`, into that of the states before it."""
    for n in range(N):
        g = tl.load(carry + n * carry_step, mask=inside, other=0.0)
        decay, _ = decays(delta, A + n, live, inside)
        c = tl.load(C + n * C_step, mask=live, other=0.0).to(tl.float32)
        x = states_after(tl.flip(decay, 0), tl.flip(decay * (dy * c[:, None]), 0), g)
        tl.debug_barrier()
        tl.store(carry + n * carry_step, row_of(x, x.shape[0] - 1), mask=inside)


@triton.jit
def gradients_tile(
    delta,
    u,
    dy,
    live,
    inside,
    A,
    B,
    C,
    C_start,
    B_step,
    C_step,
    enter,
    enter_step,
    carry,
    carry_step,
    dA,
    started,
    dB,
    dC,
    dC_start,
    dB_step,
    dC_step,
    N,
):
    """sum_n g B and sum_n of the gradient of the exponent delta A times A, with g the gradient of the states.

    Takes the states before the tile from `enter`; turns `carry` as `pull_tile` does; adds to dA [BC] at n once the sum
    was `started`, else begins it; writes dB and dC, the sums over the channels of the tile.
    """
    through_B = tl.zeros_like(delta)
    through_A = tl.zeros_like(delta)
    for n in range(N):
        h = tl.load(enter + n * enter_step, mask=inside, other=0.0)
        g_after = tl.load(carry + n * carry_step, mask=inside, other=0.0)
        b = tl.load(B + n * B_step, mask=live, other=0.0).to(tl.float32)[:, None]
        decay, a = decays(delta, A + n, live, inside)
        drive = delta * u * b
        decayed = decay * states_before(decay, drive, h)
        tl.store(dC + (dC_start + n * dC_step), tl.sum(dy * (decayed + drive), 1), mask=live)
        tl.debug_barrier()  # the gradients are not begun before the states are done with: they would not fit registers
        c = tl.load(C + (C_start + n * C_step), mask=live, other=0.0).to(tl.float32)[:, None]
        pushed = dy * c
        g = pushed + tl.flip(states_before(tl.flip(decay, 0), tl.flip(decay * pushed, 0), g_after), 0)
        of_decay = tl.where(live[:, None], g * decayed, 0.0)
        through_B += g * b
        through_A += of_decay * a[None, :]
        tl.store(dB + n * dB_step, tl.sum(g * (delta * u), 1), mask=live)
        so_far = tl.load(dA + n, mask=inside & started, other=0.0)
        tl.store(carry + n * carry_step, row_of(decay * g, 0), mask=inside)
        tl.store(dA + n, so_far + tl.sum(of_decay * delta, 0), mask=inside)
    return through_B, through_A
