"""The token mixer of FastVim: Vim's, whose scan walks over the pooled lines of the image instead of its tokens.

B batch, L = r*c tokens in r lines of c, P = r pooled steps, D model width, E inner width.
Source: Kapse et al., "Fast Vision Mamba: Pooling Spatial Dimensions for Accelerated Processing", 2025, section 3
(arXiv 2502.00594).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmamba_kernels import pool_tokens, pooled_scan

from ..errors import UserError
from .argument_checks import check_positive
from .layers import find
from .vim_mixer import VimMixer


class FastVimMixer(VimMixer):
    """Maps tokens [B, L, D], the lines of a grid (r, c) one after the other, to the same shape.

    The tokens of a line are pooled by `collapse_method` "mean" or "max", and multiplied by `scaling_factor`, after the
    convolution over all tokens. Every token gets the scan's output for its line, and a skip from its own value. The
    mean of the two directions follows, then the LayerNorm unless `norm_after_scan` is False, then the gate.
    The grid may have more axes, and `pooled_axes` may be others than the last; as for `vmamba_kernels.pooled_scan`.
    `use_fast_path=False` scans, repeats and adds by plain operators, with the same result.
    The other arguments are those of `VimMixer`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        collapse_method: str = "mean",
        scaling_factor: float = 1.0,
        pooled_axes: int | Sequence[int] = -1,
        norm_after_scan: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(d_model, norm_after_scan=norm_after_scan, **options)
        if self.bimamba_type != "v2":
            raise UserError(f"bimamba_type: FastVim scans both directions, 'v2', got {self.bimamba_type!r}; use Vim")
        if not self.divide:
            raise UserError("if_divide_out: FastVim takes the mean of its directions; leave it True")
        self.collapse_method = find("collapse_method", collapse_method, ("mean", "max"))
        check_positive("scaling_factor", scaling_factor)
        self.scaling_factor = scaling_factor
        self.pooled_axes = pooled_axes

    def _scanned(self, x: Tensor, grid: Any) -> Tensor:
        """[B, L, E]: the mean of the directions for x [B, E, L], all of it in the order of the tokens."""
        u = self._convolved(x, flip_output=False)  # [B, 2E, L]
        steps = pool_tokens(
            u, grid, self.pooled_axes, reduce=self.collapse_method, scale=self.scaling_factor
        )  # [B, 2E, P]
        delta, b, c = self._projected(steps)
        A, D, bias = self._recurrence()
        plain = "reference" if u.dtype is torch.float64 else "unfused"
        y = pooled_scan(
            u,
            steps,
            delta,
            A,
            b,
            c,
            D,
            bias,
            grid=grid,
            pooled_axes=self.pooled_axes,
            reverse=(False, True),
            average=True,
            backend=self.backend if self.use_fast_path else plain,
        )
        return y.transpose(1, 2)
