"""The fixed position table of masked autoencoders: sines and cosines of the column, then of the row.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UserError


def sincos_table(dim: int, grid: tuple[int, int], class_rows: int = 0, device: Any = None) -> Tensor:
    """[1, class_rows + h*w, dim]: rows of zeros, then of each token of a grid (h, w)."""
    if dim % 4:
        raise UserError(f"dim: a table of sines and cosines needs a multiple of 4, got {dim}")
    quarter = dim // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64, device=device) / quarter)

    def waves(size: int) -> Tensor:
        angles = torch.outer(torch.arange(size, dtype=torch.float64, device=device), frequencies)
        return torch.cat([angles.sin(), angles.cos()], 1)  # [size, dim / 2]

    height, width = grid
    rows, columns = waves(height).repeat_interleave(width, 0), waves(width).repeat(height, 1)
    table = torch.cat([columns, rows], 1)
    return torch.cat([table.new_zeros(class_rows, dim), table])[None].float()
