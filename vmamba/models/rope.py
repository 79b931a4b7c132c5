"""Rotary position embedding of the tokens of an image: half of the channels turn with the row, half with the column.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021; in two axes as in Fang et al.,
"EVA-02: A Visual Representation for Neon Genesis", 2023.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .argument_checks import check_positive

Rotation = tuple[Tensor, Tensor]


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x [B, L, D] with each pair of channels (2i, 2i + 1) of token l turned by the angle of (cos, sin) [L, D]."""
    cos, sin = rotation
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos.to(x.dtype) + torch.stack([-second, first], dim=-1).flatten(-2) * sin.to(x.dtype)


class Rope(nn.Module):
    """The rotation of every token of a grid: [h*w, D] of cosines and one of sines, kept for the grid it is built for.

    A row i of h has the position i / h * `pretrained_length`, so that grids of other sizes cover the same angles; a
    column likewise.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor
    # Follow from the grid, so that weights trained without rotations fit too.
    optional_keys = ("freqs_*",)

    def __init__(
        self, dim: int, grid: tuple[int, int], pretrained_length: int = 14, theta: float = 1e4, device: Any = None
    ) -> None:
        super().__init__()
        if dim % 4:
            raise UserError(f"embed_dim: if_rope needs a multiple of 4, got {dim}")
        check_positive("pt_hw_seq_len", pretrained_length)
        self.dim = dim
        self.pretrained_length = pretrained_length
        self.theta = theta
        self.set_grid(grid, device)

    def set_grid(self, grid: tuple[int, int], device: Any = None) -> None:
        """Keep the rotation of another grid."""
        self.grid = grid
        cos, sin = self._of_grid(grid, device)
        self.register_buffer("freqs_cos", cos)
        self.register_buffer("freqs_sin", sin)

    def _of_grid(self, grid: tuple[int, int], device: Any) -> Rotation:
        half = self.dim // 2
        frequencies = self.theta ** -(torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)

        def angles(size: int) -> Tensor:
            places = torch.arange(size, dtype=torch.float32, device=device) / size * self.pretrained_length
            return torch.outer(places, frequencies).repeat_interleave(2, dim=1)  # [size, D / 2]

        rows, columns = angles(grid[0]), angles(grid[1])
        angle = torch.cat([rows.repeat_interleave(grid[1], dim=0), columns.repeat(grid[0], 1)], dim=1)
        return angle.cos(), angle.sin()

    def forward(self, grid: tuple[int, int]) -> Rotation:
        """(cos, sin), each [h*w, D], of a grid."""
        if grid == self.grid:
            return self.freqs_cos, self.freqs_sin
        return self._of_grid(grid, self.freqs_cos.device)
