"""The residual block of Vim and FastVim, and its RMSNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .rope import Rotation, rotated
from .vim_mixer import VimMixer

Grid = tuple[int, int]


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last axis that takes float32 input with half weights, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """x + DropPath(mixer(norm(x))) for tokens x [B, L, D] of a grid (rows, columns).

    With `transposed` the mixer sees the tokens column by column. A half mixer's output is added to a float32 x in
    float32. A rotation is applied to the branch before it is added.
    """

    def __init__(
        self, dim: int, mixer: VimMixer, norm: Callable[..., nn.Module], drop_path: float = 0.0, **dd: Any
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = norm(dim, **dd)
        self.drop_path = DropPath(drop_path)
        self.transposed = False
        self.use_checkpoint = False

    def forward(self, x: Tensor, grid: Grid, rotation: Rotation | None = None) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._added, x, grid, rotation, use_reentrant=False)
        return self._added(x, grid, rotation)

    def _added(self, x: Tensor, grid: Grid, rotation: Rotation | None) -> Tensor:
        normed = self.norm(x).to(self.mixer.in_proj.weight.dtype)
        if self.transposed:
            columns = self.mixer(transpose_tokens(normed, grid), grid[::-1])
            branch = transpose_tokens(columns, grid[::-1])
        else:
            branch = self.mixer(normed, grid)
        branch = self.drop_path(branch)
        return x + (branch if rotation is None else rotated(branch, rotation))


def transpose_tokens(x: Tensor, grid: Grid) -> Tensor:
    """The tokens [B, r*c, D] of a grid (r, c) in the order of the grid (c, r)."""
    return x.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
