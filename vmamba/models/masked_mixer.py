"""FastVim's block on the tokens that a masked autoencoder has kept, whose lines are pooled over what is left of them.

B batch, n kept tokens of a grid (r, c), E inner width.
Source: Kapse et al., "Fast Vision Mamba", 2025 (arXiv 2502.00594), FastMaskVim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmamba_kernels import selective_scan

from .fastvim_mixer import FastVimMixer
from .vim_block import Block


@dataclass(frozen=True)
class KeptTokens:
    """The places [B, n] of the kept tokens in a grid of r lines of c, rising in each sample."""

    rows: int
    columns: int
    places: Tensor

    def transposed(self) -> tuple[KeptTokens, Tensor]:
        """The same tokens in the grid (c, r), and the order [B, n] in which they stand there."""
        places = self.places % self.columns * self.rows + self.places // self.columns
        places, order = places.sort(dim=1)
        return KeptTokens(self.columns, self.rows, places), order


class MaskedFastVimMixer(FastVimMixer):
    """Maps kept tokens [B, n, D] to the same shape; `grid` is their `KeptTokens`.

    A line is the sum of its kept tokens over c, however many there are. As published, which trained weights depend on,
    the backward direction, whose sequence begins with the last token, takes the places of the forward one for it;
    with `mirror_ids` it takes its own.
    """

    def __init__(self, d_model: int, *, mirror_ids: bool = False, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.mirror_ids = mirror_ids

    def _scanned(self, x: Tensor, grid: Any) -> Tensor:
        """[B, n, E]: the mean of the directions for x [B, E, n]; each of them in its own time."""
        u = self._convolved(x, flip_output=True).unflatten(1, (2, self.d_inner))  # [B, 2, E, n]
        lines = grid.places // grid.columns
        backward = grid.rows - 1 - lines.flip(1) if self.mirror_ids else lines
        index = torch.stack([lines, backward], 1)[:, :, None].expand_as(u)  # [B, 2, E, n]
        steps = u.new_zeros(*u.shape[:3], grid.rows).scatter_add(3, index, u)
        steps = (steps * (self.scaling_factor / grid.columns)).flatten(1, 2)  # [B, 2E, r]
        delta, b, c = self._projected(steps)
        A, D, bias = self._recurrence()
        y = selective_scan(steps, delta, A, b, c, None, bias, backend=self.backend)
        assert isinstance(y, Tensor)
        y = y.unflatten(1, (2, self.d_inner)).gather(3, index) + D.view(2, self.d_inner, 1) * u
        return ((y[:, 0] + y[:, 1].flip(2)) / 2).transpose(1, 2)


class MaskedBlock(Block):
    """`Block` for kept tokens: with `swaps` the mixer sees them column by column."""

    def _mixed(self, x: Tensor, grid: Any) -> Tensor:
        if self.swaps is None:
            return self.mixer(x, grid)
        kept, order = grid.transposed()
        seen = self.mixer(x.gather(1, _over_channels(order, x)), kept)
        return seen.gather(1, _over_channels(order.argsort(1), x))


def _over_channels(order: Tensor, x: Tensor) -> Tensor:
    return order[:, :, None].expand_as(x)
