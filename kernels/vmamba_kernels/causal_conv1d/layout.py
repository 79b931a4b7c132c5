"""Memory layouts that every backend of the causal convolution agrees on. B batch, C channels, L length."""

from __future__ import annotations

from torch import Tensor

from ..selective_scan.layout import is_channel_last


def empty_output(x: Tensor, channels: int) -> Tensor:
    """An uninitialised dense [B, channels, L] in x's type, channel-last if x is, else channel-first."""
    batch, _, length = x.shape
    if is_channel_last(x):
        return x.new_empty((batch, length, channels)).transpose(1, 2)
    return x.new_empty((batch, channels, length))


def side_by_side(x: Tensor) -> Tensor:
    """x itself where its channels or its time steps lie side by side, else a copy."""
    return x if is_channel_last(x) or x.stride(2) == 1 else x.contiguous()


def laid_out_like(x: Tensor, like: Tensor) -> Tensor:
    """x with the axis side by side that `like` has so: x itself, or a copy."""
    if is_channel_last(like):
        return x if x.stride(1) == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)
    return x if x.stride(2) == 1 else x.contiguous()
