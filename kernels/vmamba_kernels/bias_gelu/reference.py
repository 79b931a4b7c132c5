"""gelu(x + bias) and its gradient as formulas; in float32 inside, float64 for float64.

[..., C] activations, [C] bias. Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _sum(x: Tensor, bias: Tensor) -> Tensor:
    work = torch.float64 if x.dtype is torch.float64 else torch.float32
    return x.to(work) + bias.to(work)


def _cdf(v: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(v / math.sqrt(2)))


def forward(x: Tensor, bias: Tensor) -> Tensor:
    """y [..., C] in x's type."""
    v = _sum(x, bias)
    return (v * _cdf(v)).to(x.dtype).contiguous()


def backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """dx [..., C] in x's type, dbias [C] in bias's."""
    v = _sum(x, bias)
    density = torch.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)
    dv = dy.to(v.dtype) * (_cdf(v) + v * density)
    rows = dv.reshape(dv.shape[:-1].numel(), dv.shape[-1])  # not -1, which nothing decides where C is 0
    return dv.to(x.dtype).contiguous(), rows.sum(0).to(bias.dtype)
