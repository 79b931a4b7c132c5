"""The causal convolution in Triton: forward, and a backward that computes the gradients of the sums again where taps
reach over a tile, so that nothing but the arguments and the results crosses device memory.

A program takes BLOCK_T steps of BLOCK_C channels. Channels side by side or time steps side by side both read well: the
strides that are 1 are known when a kernel is compiled, and they decide which way a tile is spread over the threads.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..selective_scan.layout import empty_sequence, is_channel_last
from .layout import empty_output, laid_out_like, side_by_side


@triton.jit
def _sigmoid(x):
    # exp(-x) may be infinite, and its reciprocal is then 0.
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tile(data, time, channel, time_stride, channel_stride, length, channels):
    """[T, C] in float32 at these times, zeros outside 0 <= time < length."""
    there = ((time >= 0) & (time < length))[:, None] & (channel < channels)[None, :]
    at = time[:, None] * time_stride + channel[None, :] * channel_stride
    return tl.load(data + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _sums(
    x, weight, bias, own, channel, x_time, x_channel, length, channels, group, SHIFT: tl.constexpr, W: tl.constexpr,
    REVERSED: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """bias + sum over the taps at `own` + SHIFT of the group's own time."""
    known = channel < channels
    filters = group * channels + channel
    sums = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if HAS_BIAS:
        sums += tl.load(bias + filters, mask=known, other=0.0)[None, :]
    for j in tl.static_range(W):
        time = own + (SHIFT - (W - 1 - j))
        time = length - 1 - time if REVERSED else time
        w = tl.load(weight + filters * W + j, mask=known, other=0.0)
        sums += w[None, :] * _tile(x, time, channel, x_time, x_channel, length, channels)
    return sums


@triton.jit
def forward_kernel(
    x, weight, bias, out, length, channels, x_batch, x_channel, x_time, out_batch, out_channel, out_time,
    G: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr, FLIP: tl.constexpr,
    SHARED: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pieces = tl.cdiv(length, BLOCK_T)
    blocks = tl.cdiv(channels, BLOCK_C)
    place = tl.program_id(0).to(tl.int64)
    width = tl.cast(channels, tl.int64)
    channel = place % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = place // blocks // pieces
    start = place // blocks % pieces * BLOCK_T
    time = start + tl.arange(0, BLOCK_T)
    stored = (time < length)[:, None] & (channel < channels)[None, :]
    for g in tl.static_range(G):
        reversed_ = (REVERSE >> g) % 2 == 1
        own = length - 1 - time if reversed_ else time
        part = x + batch * x_batch + (0 if SHARED else g) * width * x_channel
        y = _sums(
            part, weight, bias, own, channel, x_time, x_channel, length, channels, g, 0, W, reversed_, HAS_BIAS,
            BLOCK_T, BLOCK_C,
        )  # fmt: skip
        if SILU:
            y = y * _sigmoid(y)
        at = own if FLIP else time
        target = out + batch * out_batch + g * width * out_channel
        at = at[:, None] * out_time + channel[None, :] * out_channel
        tl.store(target + at, y.to(out.dtype.element_ty), mask=stored)


@triton.jit
def backward_kernel(
    dout, x, weight, bias, dx, partial, length, channels, dout_batch, dout_channel, dout_time, x_batch, x_channel,
    x_time, dx_batch, dx_channel, dx_time, G: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr,
    FLIP: tl.constexpr, SHARED: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    pieces = tl.cdiv(length, BLOCK_T)
    blocks = tl.cdiv(channels, BLOCK_C)
    place = tl.program_id(0).to(tl.int64)
    width = tl.cast(channels, tl.int64)
    channel = place % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    batch = place // blocks // pieces
    time = place // blocks % pieces * BLOCK_T + tl.arange(0, BLOCK_T)
    known = channel < channels
    stored = (time < length)[:, None] & known[None, :]
    at_dx = time[:, None] * dx_time + channel[None, :] * dx_channel
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for g in tl.static_range(G):
        reversed_ = (REVERSE >> g) % 2 == 1
        own = length - 1 - time if reversed_ else time
        part = x + batch * x_batch + (0 if SHARED else g) * width * x_channel
        grads = dout + batch * dout_batch + g * width * dout_channel
        sums = partial + (place // blocks * G + g) * (W + 1) * channels
        filters = g * channels + channel
        for k in tl.static_range(W):
            # q of the step k later in the group's time, which tap W-1-k of that step took from here.
            later = own + k
            at = length - 1 - later if reversed_ and not FLIP else later
            q = _tile(grads, at, channel, dout_time, dout_channel, length, channels)
            if SILU:
                p = _sums(
                    part, weight, bias, own, channel, x_time, x_channel, length, channels, g, k, W, reversed_,
                    HAS_BIAS, BLOCK_T, BLOCK_C,
                )  # fmt: skip
                s = _sigmoid(p)
                q = q * s * (1.0 + p * (1.0 - s))
            w = tl.load(weight + filters * W + (W - 1 - k), mask=known, other=0.0)
            total += w[None, :] * q
            if k == 0:
                q = tl.where(stored, q, 0.0)
                for j in tl.static_range(W):
                    before = own - (W - 1 - j)
                    before = length - 1 - before if reversed_ else before
                    read = _tile(part, before, channel, x_time, x_channel, length, channels)
                    tl.store(sums + j * channels + channel, tl.sum(q * read, 0), mask=known)
                tl.store(sums + W * channels + channel, tl.sum(q, 0), mask=known)
        if not SHARED:
            target = dx + batch * dx_batch + g * width * dx_channel
            tl.store(target + at_dx, total.to(dx.dtype.element_ty), mask=stored)
            total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if SHARED:
        tl.store(dx + batch * dx_batch + at_dx, total.to(dx.dtype.element_ty), mask=stored)


def _blocks(x: Tensor, channels: int, elements: int) -> tuple[int, int]:
    """BLOCK_T and BLOCK_C: 64 wide along what lies side by side, or less if there is less."""
    most = x.shape[2] if not is_channel_last(x) else channels
    side = min(64, max(16, triton.next_power_of_2(most)))
    other = elements // side
    return (other, side) if is_channel_last(x) else (side, other)


def _options(
    weight: Tensor, bias: Tensor | None, x: Tensor, reverse: list[bool], silu: bool, flip: bool
) -> dict[str, Any]:
    bits = sum(1 << g for g, is_reversed in enumerate(reverse) if is_reversed)
    return {
        "G": weight.shape[0], "W": weight.shape[2], "REVERSE": bits, "SILU": silu, "FLIP": flip,
        "SHARED": x.shape[1] == weight.shape[1], "HAS_BIAS": bias is not None, "num_warps": 4, "num_stages": 1,
    }  # fmt: skip


def _device(x: Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: list[bool], silu: bool, flip_output: bool
) -> Tensor:
    """As `reference.forward`."""
    groups, channels, _ = weight.shape
    out = empty_output(x, groups * channels)
    if not x.numel():
        return out
    x = laid_out_like(side_by_side(x), out)
    block_t, block_c = _blocks(x, channels, 2048)
    grid = x.shape[0] * triton.cdiv(x.shape[2], block_t) * triton.cdiv(channels, block_c)
    bias = None if bias is None else bias.contiguous()
    with _device(x):
        forward_kernel[(grid,)](
            x, weight.contiguous(), bias, out, x.shape[2], channels, *x.stride(), *out.stride(),
            **_options(weight, bias, x, reverse, silu, flip_output), BLOCK_T=block_t, BLOCK_C=block_c,
        )  # fmt: skip
    return out


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: list[bool], silu: bool, flip_output: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`. The sums of the programs are added in a fixed order."""
    groups, channels, width = weight.shape
    dx = empty_sequence(x, x.dtype)
    if not x.numel():
        return dx, torch.zeros_like(weight), weight.new_zeros((0,) if bias is None else bias.shape)
    x, dy = laid_out_like(side_by_side(x), dx), laid_out_like(dy, dx)
    block_t, block_c = _blocks(x, channels, 1024)
    parts = x.shape[0] * triton.cdiv(x.shape[2], block_t)
    partial = weight.new_empty(parts, groups, width + 1, channels)
    bias = None if bias is None else bias.contiguous()
    with _device(x):
        backward_kernel[(parts * triton.cdiv(channels, block_c),)](
            dy, x, weight.contiguous(), bias, dx, partial, x.shape[2], channels, *dy.stride(), *x.stride(),
            *dx.stride(), **_options(weight, bias, x, reverse, silu, flip_output), BLOCK_T=block_t, BLOCK_C=block_c,
        )  # fmt: skip
    sums = partial.sum(0)
    # Results of their own: a part of `sums` would keep its storage and offset where it is dense already.
    dweight = sums[:, :width].transpose(1, 2).clone(memory_format=torch.contiguous_format)
    dbias = sums[:, width].clone(memory_format=torch.contiguous_format)
    return dx, dweight, weight.new_empty(0) if bias is None else dbias
