"""How the scans in Triton are cut up, and their second stage: what every chunk makes of a zero state, joined."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..triton_math import LOG2E
from .triton_tile import row_of, states_after

SLOTS, CHANNELS = 16, 128


def block_of(channels: int) -> int:
    """The channels of a program, a warp for each 32: the widest block that adds no empty warps."""
    return next(width for width in (128, 64, 32) if -channels % width == -channels % 32)


@triton.jit(do_not_specialize=["kept", "KC"])
def join_kernel(
    slots, A, total, last, kept, N, KC, REVERSE: tl.constexpr, HAS_LAST: tl.constexpr,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """slots [B, kept, N, KC] in place: x_j = exp(A total of the chunk) x_{j-1} + slot j, or backwards in j.

    total [B, kept + 1, KC] is the sum of delta over each chunk, last [B, KC, N] what the backward walk starts from.
    """
    batch = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.program_id(2)
    inside = channel < KC
    a = tl.load(A + channel.to(tl.int64) * N + n, mask=inside, other=0.0) * LOG2E
    x = tl.zeros([CHANNELS], tl.float32)
    if HAS_LAST:
        x = tl.load(last + (batch * KC + channel) * N + n, mask=inside, other=0.0)
    for start in range(0, kept, SLOTS):
        step = start + tl.arange(0, SLOTS)
        live = step < kept
        j = (kept - 1 - step if REVERSE else step).to(tl.int64)
        chunk = j + 1 if REVERSE else j
        mask = live[:, None] & inside[None, :]
        sums = tl.load(total + (batch * (kept + 1) + chunk)[:, None] * KC + channel[None, :], mask=mask, other=0.0)
        places = slots + ((batch * kept + j)[:, None] * N + n) * KC + channel[None, :]
        x_j = states_after(tl.where(mask, tl.exp2(sums * a[None, :]), 1.0), tl.load(places, mask=mask, other=0.0), x)
        tl.store(places, x_j, mask=mask)
        x = row_of(x_j, SLOTS - 1)


def join(slots: Tensor, A: Tensor, total: Tensor, reverse: bool, last: Tensor | None = None) -> None:
    """Join the ends of the chunks, [B, kept, N, KC], to the true ones, in place; `reverse` for gradients."""
    batch, kept, N, KC = slots.shape
    if slots.numel() == 0:
        return
    first = A if last is None else last
    join_kernel[(batch, triton.cdiv(KC, CHANNELS), N)](
        slots, A, total, first, kept, N, KC, reverse, last is not None, SLOTS, CHANNELS, num_warps=4, num_stages=1
    )  # fmt: skip
