"""Sizes and memory layouts that every backend of the selective scan agrees on.

B batch, KD channels (K groups of D), L length, N states per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chunk_length(d_state: int, device: str = "cpu") -> int:
    """Number of time steps between two stored states: long enough that the stored states stay O(B*KD*L).

    The CUDA kernels hold the states of one chunk in registers, whatever N is.
    """
    if device == "cuda":
        return 32
    return 64 if d_state <= 32 else 128


def stored_states(length: int, d_state: int, device: str = "cpu") -> int:
    """Number of states that the forward stores for the backward: one at the start of each chunk but the first."""
    chunk = chunk_length(d_state, device)
    return (length + chunk - 1) // chunk - 1


def is_channel_last(x: Tensor) -> bool:
    """Whether [B, KD, L] is stored with the channels side by side."""
    return x.stride(1) == 1 and x.stride(2) != 1


def empty_sequence(like: Tensor, dtype: torch.dtype, device: str | None = None) -> Tensor:
    """An uninitialised [B, KD, L] in the layout of `like`: dense, channel-last if `like` is, else channel-first.

    It is on `like`'s device unless one is named.
    """
    batch, channels, length = like.shape
    if is_channel_last(like):
        return like.new_empty((batch, length, channels), dtype=dtype, device=device).transpose(1, 2)
    return like.new_empty((batch, channels, length), dtype=dtype, device=device)


def empty_projection(like: Tensor) -> Tensor:
    """An uninitialised [B, K, N, L] for the gradient of B or C: time-last if `like` is, else stored as [B, L, K, N]."""
    batch, groups, d_state, length = like.shape
    if like.stride(3) == 1:
        return like.new_empty((batch, groups, d_state, length))
    return like.new_empty((batch, length, groups, d_state)).permute(0, 2, 3, 1)
