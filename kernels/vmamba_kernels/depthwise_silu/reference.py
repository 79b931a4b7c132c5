"""The depthwise convolution and SiLU as sums over the taps, and their gradient; in float32 inside, float64 for float64.

[B, H, W, C] images; weight [C, 1, k, k] as torch.nn.Conv2d has it, k odd; x is 0 outside the image, r = (k - 1) / 2:

    p_hw = bias + sum_ij weight[i, j] * x_{h + i - r, w + j - r}          y = silu(p) = p * sigmoid(p)

Source: Elfwing et al., "Sigmoid-weighted linear units", 2018, for the activation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64 if tensor.dtype is torch.float64 else torch.float32)


def _taps(x: Tensor, weight: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Each tap (i, j), and what it reads of x at every position."""
    _, H, W, _ = x.shape
    radius = weight.shape[2] // 2
    padded = F.pad(x, (0, 0, radius, radius, radius, radius))
    for i in range(weight.shape[2]):
        for j in range(weight.shape[2]):
            yield i, j, padded[:, i : i + H, j : j + W]


def _sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    p = torch.zeros_like(x) if bias is None else bias.expand_as(x)
    for i, j, read in _taps(x, weight):
        p = p + weight[:, 0, i, j] * read
    return p


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y [B, H, W, C] in x's type, contiguous."""
    p = _sums(_wide(x), _wide(weight), None if bias is None else _wide(bias))
    return (p * torch.sigmoid(p)).to(x.dtype).contiguous()


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """dx in x's type, and the gradients of weight and bias (empty if absent) in theirs.

    With q the gradient of p:

        q            = dy * sigmoid(p) * (1 + p * (1 - sigmoid(p)))
        dx           = the convolution of q with the taps in reverse, weight[k - 1 - i, k - 1 - j]
        dweight[i,j] = sum over images and positions of q_hw * x_{h + i - r, w + j - r}
        dbias        = sum over images and positions of q
    """
    x_, weight_ = _wide(x), _wide(weight)
    p = _sums(x_, weight_, None if bias is None else _wide(bias))
    s = torch.sigmoid(p)
    q = _wide(dy) * s * (1 + p * (1 - s))
    dx = _sums(q, weight_.flip(2, 3), None).to(x.dtype).contiguous()
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for i, j, read in _taps(x_, weight_):
        dweight[:, 0, i, j] = (q * read).sum((0, 1, 2))
    dbias = weight.new_empty(0) if bias is None else q.sum((0, 1, 2)).to(bias.dtype)
    return dx, dweight, dbias
