"""The residual block of Vim and FastVim, and its RMSNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, register_notrace_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmamba_kernels.rms_norm import fuses, rms_norm

from .layers import plainly_used
from .rope import Rotation, rotated
from .vim_mixer import VimMixer

Grid = tuple[int, ...]


@register_notrace_module
class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last axis that takes float32 input with half weights, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        if self._fuses(x):
            return rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)

    def _fuses(self, x: Tensor) -> bool:
        """Whether the operator may stand for PyTorch's, which graphs fuse."""
        return (
            not torch.compiler.is_compiling()
            and fuses(x.dtype, x.device.type)
            and plainly_used(x, (), (self.weight,))
            and x.shape[-1:] == self.normalized_shape
        )


class Block(nn.Module):
    """x + DropPath(mixer(norm(x))) for tokens x [B, L, D] of a grid, (rows, columns) of an image.

    With `swaps` the mixer sees the tokens with these two axes of the grid exchanged. A half mixer's output is added to
    a float32 x in float32. A rotation is applied to the branch before it is added.
    """

    def __init__(
        self, dim: int, mixer: VimMixer, norm: Callable[..., nn.Module], drop_path: float = 0.0, **dd: Any
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = norm(dim, **dd)
        self.drop_path = DropPath(drop_path)
        self.swaps: tuple[int, int] | None = None
        self.use_checkpoint = False

    def forward(self, x: Tensor, grid: Grid, rotation: Rotation | None = None) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._added, x, grid, rotation, use_reentrant=False)
        return self._added(x, grid, rotation)

    def _added(self, x: Tensor, grid: Grid, rotation: Rotation | None) -> Tensor:
        normed = self.norm(x).to(self.mixer.in_proj.weight.dtype)
        branch = self.drop_path(self._mixed(normed, grid))
        return x + (branch if rotation is None else rotated(branch, rotation))

    def _mixed(self, x: Tensor, grid: Any) -> Tensor:
        if self.swaps is None:
            return self.mixer(x, grid)
        x, swapped = swap_axes(x, grid, self.swaps)
        return swap_axes(self.mixer(x, swapped), swapped, self.swaps)[0]


def swap_axes(x: Tensor, grid: Grid, axes: tuple[int, int] = (0, 1)) -> tuple[Tensor, Grid]:
    """The tokens [B, L, D] of a grid in the order of the grid with two axes exchanged, and that grid."""
    x = x.unflatten(1, grid).transpose(axes[0] + 1, axes[1] + 1)
    return x.flatten(1, len(grid)), tuple(x.shape[1 : len(grid) + 1])
