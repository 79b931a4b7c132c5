"""Sizes and memory layouts that every backend of ss2d agrees on.

B batch, H x W positions, L = H*W, C channels, K directions, R rank, N states, J = K * (R + 2N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..selective_scan.layout import chunk_length, stored_states

__all__ = [
    "chunk_length",
    "empty_image",
    "graph_states",
    "image_like",
    "in_graph",
    "positions_last",
    "sizes",
    "stored_states",
]


def sizes(x: Tensor, channel_first: bool) -> tuple[int, int, int, int]:
    """B, C, H, W of an image in either layout."""
    if channel_first:
        return x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    return x.shape[0], x.shape[3], x.shape[1], x.shape[2]


def _stored_channel_last(x: Tensor, channel_first: bool) -> bool:
    """Whether an image has its channels side by side: by its layout, or [B, C, H, W] in torch.channels_last."""
    return not channel_first or (x.stride(1) == 1 and x.stride(3) != 1)


def empty_image(like: Tensor, dtype: torch.dtype, channel_first: bool) -> Tensor:
    """An uninitialised dense image of the shape of `like`, with the channels side by side if `like` has them so."""
    if not channel_first or not _stored_channel_last(like, channel_first):
        return like.new_empty(like.shape, dtype=dtype)
    batch, channels, H, W = like.shape
    return like.new_empty((batch, H, W, channels), dtype=dtype).permute(0, 3, 1, 2)


def positions_last(x: Tensor, channel_first: bool) -> Tensor:
    """[B, C, L] from an image in either layout: a view where H and W can be joined, else a copy."""
    return x.flatten(2) if channel_first else x.flatten(1, 2).transpose(1, 2)


def _strides(like: Tensor, channel_first: bool) -> tuple[int, int, int, int]:
    """Those of `empty_image`, in which no size but the batch's may be 0."""
    _, C, H, W = sizes(like, channel_first)
    if not _stored_channel_last(like, channel_first):
        return C * H * W, H * W, W, 1
    return (H * W * C, 1, W * C, C) if channel_first else (H * W * C, W * C, C, 1)


def image_like(x: Tensor, like: Tensor, channel_first: bool) -> Tensor:
    """The sequence x [B, C, L] as the image that `empty_image` makes, without a copy if it lies so."""
    image = (x if channel_first else x.transpose(1, 2)).reshape(like.shape)
    if image.stride() == _strides(like, channel_first):
        return image
    return empty_image(like, x.dtype, channel_first).copy_(image)


def graph_states(length: int, d_state: int, device: str = "cpu") -> int:
    """The number of states between forward and backward: `stored_states`, and at least 2.

    A graph with a dynamic length takes a size of 0 or 1 for a constant, and would be built anew for small images.
    """
    return torch.sym_max(stored_states(length, d_state, device), 2)


def in_graph(states: Tensor) -> Tensor:
    """The states [B, S, N, K*C] of a backend, filled up with zeros to 2 if S is 0 or 1."""
    lacking = 2 - states.shape[1]
    return states if lacking <= 0 else torch.nn.functional.pad(states, (0, 0, 0, 0, 0, lacking))
