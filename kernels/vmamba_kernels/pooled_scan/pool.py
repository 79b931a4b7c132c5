"""Pooling of the tokens of an image into the steps of a pooled scan: plain PyTorch, exact, one pass over the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .tokens import token_axes


def pool_tokens(
    u: Tensor, grid: Sequence[int], pooled_axes: int | Sequence[int] = -1, *, reduce: str = "mean", scale: float = 1.0
) -> Tensor:
    """The pooled sequence [..., P] of u [..., L]: mean or max over the pooled axes of the grid, times `scale`.

    Args:
        u: [..., L], any floating type and strides; half types are summed in float32 and rounded once.
        grid, pooled_axes: as for `pooled_scan`.
        reduce: "mean" or "max"; the gradient of equal maxima is shared among them.
        scale: factor of the result (FastVim's `scaling_factor`).

    Raises:
        ValueError: a grid that is not u's, or an unknown `reduce`.

    Source: Kapse et al., "Fast Vision Mamba", 2025, section 3 (arXiv 2502.00594).
    """
    if reduce not in ("mean", "max"):
        raise ValueError(f"reduce: expected 'mean' or 'max', got {reduce!r}")
    tokens = token_axes(u.shape[-1], None, grid, pooled_axes)
    # Channels that lie side by side are summed so if the result's do as well; of unknown sizes a graph cannot tell.
    if u.dim() > 1 and not torch.compiler.is_compiling() and u.stride(-2) == 1:
        return _pooled(u.transpose(-1, -2), -2, tokens, reduce, scale).transpose(-1, -2)
    return _pooled(u, -1, tokens, reduce, scale)


def _pooled(u: Tensor, axis: int, tokens: tuple[Any, ...], reduce: str, scale: float) -> Tensor:
    """`u` with its tokens at `axis`, -1 or -2, pooled over the second and fourth of `tokens`."""
    seen, pooled = u.unflatten(axis, tokens), (axis - 2, axis)
    steps = seen.mean(pooled) if reduce == "mean" else seen.amax(pooled)
    steps = steps if scale == 1.0 else steps * scale
    # to flatten an axis of 1 with one of unknown size, torch.export would ask whether that is 1 too
    if isinstance(tokens[0], int) and tokens[0] == 1:
        return steps.squeeze(axis - 1)
    return steps.flatten(axis - 1, axis)
