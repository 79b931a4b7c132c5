"""The root mean square norm and its gradient as formulas; in float32 inside, float64 for float64.

x [..., D], weight w [D]; means are over the last axis:

    r = 1 / sqrt(mean(x^2) + eps)          n = x r          y = n w

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _wide(*tensors: Tensor) -> list[Tensor]:
    work = torch.float64 if tensors[0].dtype is torch.float64 else torch.float32
    return [t.to(work) for t in tensors]


def _rstd(x: Tensor, eps: float) -> Tensor:
    """r [..., 1]"""
    return torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y [..., D] in x's type, contiguous."""
    x_, weight_ = _wide(x, weight)
    return (x_ * _rstd(x_, eps) * weight_).to(x.dtype).contiguous()


def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """dx in x's type, and the gradient of weight in its own.

    With g = dy w the gradient of n:

        dx      = r (g - n mean(g n))          dweight = sum over the rows of dy n
    """
    dy_, x_, weight_ = _wide(dy, x, weight)
    r = _rstd(x_, eps)
    n, g = x_ * r, dy_ * weight_
    dx = r * (g - n * (g * n).mean(-1, keepdim=True))
    dweight = (dy_ * n).sum(tuple(range(x.dim() - 1))) if x.dim() > 1 else dy_ * n
    return dx.to(x.dtype).contiguous(), dweight.to(weight.dtype).contiguous()
