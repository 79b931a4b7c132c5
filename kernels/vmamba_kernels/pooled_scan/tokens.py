"""Which tokens belong to which pooled step, and the sizes and layouts that every backend of the pooled scan agrees on.

The tokens of an image are numbered in row-major order over a grid of axes, some of which are pooled. Adjacent axes that
are both kept or both pooled count as one, so that every case is [outer, pool1, inner, pool2] with the first and third
kept: rows of an image (H, W) are [1, 1, H, W], its columns [1, H, W, 1], and rows of tokens (H, W, C) [H, W, C, 1].

B batch, K groups of D channels, L tokens, P pooled steps, c = L/P tokens a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tokens = tuple[int, int, int, int]


def _product(sizes: Sequence[int]) -> int:
    """As math.prod, which torch.compile does not take apart for symbolic sizes."""
    product = 1
    for size in sizes:
        product = product * size
    return product


def token_axes(
    length: int, pooled: int | None, grid: Sequence[int] | None, pooled_axes: int | Sequence[int] = -1
) -> Tokens:
    """[outer, pool1, inner, pool2] of L tokens pooled to P (None: as the grid says).

    ValueError if the grid does not say how.
    """
    if grid is None:
        assert pooled is not None
        if length % pooled:
            raise ValueError(f"u_full: expected L to be a multiple of P = {pooled} or a grid, got L = {length}")
        grid, pooled_axes = (pooled, length // pooled), -1
    grid = tuple(grid)
    axes = (pooled_axes,) if isinstance(pooled_axes, int) else tuple(pooled_axes)
    if not grid or any(size < 1 for size in grid):
        raise ValueError(f"grid: expected axes of at least 1 token, got {grid}")
    if _product(grid) != length:
        raise ValueError(f"grid: expected {length} tokens as in u_full, got {grid} of {_product(grid)}")
    if not axes or any(not -len(grid) <= axis < len(grid) for axis in axes):
        raise ValueError(f"pooled_axes: expected axes of the grid {grid}, got {axes}")
    is_pooled = {axis % len(grid) for axis in axes}
    sizes = [1, 1, 1, 1]
    place = 0
    for axis, size in enumerate(grid):
        while (place % 2 == 1) != (axis in is_pooled):
            place += 1
            if place == 4:
                raise ValueError(f"pooled_axes: {axes} of the grid {grid} cut the kept axes into more than two runs")
        sizes[place] *= size
    if place < 2:
        sizes = [1, 1, sizes[0], sizes[1]]
    outer, pool1, inner, pool2 = sizes
    if pooled is not None and outer * inner != pooled:
        kept = outer * inner
        raise ValueError(f"grid: {grid} without the axes {axes} has {kept} steps, and u_pooled has P = {pooled}")
    return outer, pool1, inner, pool2


def is_channel_last(u_full: Tensor) -> bool:
    """Whether u_full [B, K, D, L] is stored with the channels side by side."""
    return u_full.stride(2) == 1 and u_full.stride(3) != 1


def empty_output(u_full: Tensor, dtype: torch.dtype, average: bool) -> Tensor:
    """An uninitialised dense [B, K*D, L], [B, D, L] for the average over groups, in the layout of u_full."""
    batch, groups, channels, length = u_full.shape
    channels = channels if average else groups * channels
    if is_channel_last(u_full):
        return u_full.new_empty((batch, length, channels), dtype=dtype).transpose(1, 2)
    return u_full.new_empty((batch, channels, length), dtype=dtype)


def empty_full(u_full: Tensor) -> Tensor:
    """An uninitialised dense tensor of the shape, type and layout of u_full [B, K, D, L]."""
    batch, groups, channels, length = u_full.shape
    if is_channel_last(u_full):
        return u_full.new_empty((batch, length, groups, channels)).permute(0, 2, 3, 1)
    return u_full.new_empty((batch, groups, channels, length))


def orient(x: Tensor, reverse: Sequence[bool]) -> Tensor:
    """[B, K*..., (N,) P] with the steps of the reversed groups in the other order; its own inverse."""
    if not any(reverse):
        return x
    if all(reverse):
        return x.flip(-1)
    parts = x.unflatten(1, (len(reverse), x.shape[1] // len(reverse))).unbind(1)
    turned = [part.flip(-1) if back else part for part, back in zip(parts, reverse, strict=True)]
    return torch.cat(turned, 1)
