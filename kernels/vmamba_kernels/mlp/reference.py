"""The MLP and its gradient as formulas; in float32 inside, float64 for float64.

[..., C] input, F hidden and O output features; weights as torch.nn.Linear has them, [F, C] and [O, F].
Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _wide(*tensors: Tensor) -> list[Tensor]:
    work = torch.float64 if tensors[0].dtype is torch.float64 else torch.float32
    return [t.to(work) for t in tensors]


def _cdf(v: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(v / math.sqrt(2)))


def rows(x: Tensor) -> Tensor:
    """x [..., C] as [rows, C]."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])  # not -1, which nothing decides where C is 0


def forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, keep_hidden: bool
) -> tuple[Tensor, Tensor]:
    """y [..., O] in x's type; hidden [..., F], the first product without its bias, or no rows of it."""
    x_, weight1_, bias1_, weight2_, bias2_ = _wide(x, weight1, bias1, weight2, bias2)
    hidden = x_ @ weight1_.T
    v = hidden + bias1_
    y = (v * _cdf(v)) @ weight2_.T + bias2_
    kept = hidden.to(x.dtype).contiguous() if keep_hidden else x.new_empty(0, weight1.shape[0])
    return y.to(x.dtype).contiguous(), kept


def backward(
    dy: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, hidden: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx [..., C] and the gradients of weight1, bias1, weight2 and bias2 in x's type; empty where not `wanted`."""
    dy_, x_, weight1_, bias1_, weight2_, hidden_ = _wide(dy, x, weight1, bias1, weight2, hidden)
    dy_, v = rows(dy_), rows(hidden_) + bias1_
    cdf = _cdf(v)
    dx, dweight1, dbias1, dweight2, dbias2 = (x.new_empty(0) for _ in wanted)
    if any(wanted[:3]):
        density = torch.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)
        dv = (dy_ @ weight2_) * (cdf + v * density)
        dx = (dv @ weight1_).reshape(x.shape) if wanted[0] else dx
        dweight1 = dv.T @ rows(x_) if wanted[1] else dweight1
        dbias1 = dv.sum(0) if wanted[2] else dbias1
    dweight2 = dy_.T @ (v * cdf) if wanted[3] else dweight2
    dbias2 = dy_.sum(0) if wanted[4] else dbias2
    dx, dweight1, dbias1, dweight2, dbias2 = (
        g.to(x.dtype).contiguous() for g in (dx, dweight1, dbias1, dweight2, dbias2)
    )
    return dx, dweight1, dbias1, dweight2, dbias2
