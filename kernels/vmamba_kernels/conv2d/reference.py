"""The convolution as sums over the taps, and its gradient; in float32 inside, float64 for float64.

[B, H, W, C] images to [B, h, w, O]; weight [O, C/G, m, n] as torch.nn.Conv2d has it; x is 0 outside the image. With
stride s, padding p, dilation d and channels of one of the G groups:

    y_hw = bias + sum_ij weight[:, :, i, j] x_{s h + d i - p, s w + d j - p}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def output_sides(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """h and w, below 1 where the kernel is larger than the padded image."""
    return [
        (x.shape[1 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]


def _wide(*tensors: Tensor) -> list[Tensor]:
    work = torch.float64 if tensors[0].dtype is torch.float64 else torch.float32
    return [t.to(work) for t in tensors]


def padded(x: Tensor, padding: Sequence[int]) -> Tensor:
    """[B, H, W, C] with zeros around."""
    return F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))


def _taps(
    image: Tensor, weight: Tensor, sides: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Each tap (i, j), and the view [B, h, w, G, C/G] of what it reads at every position of the output."""
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            first = (i * dilation[0], j * dilation[1])
            rows, columns = (slice(first[n], first[n] + stride[n] * (sides[n] - 1) + 1, stride[n]) for n in (0, 1))
            yield i, j, image[:, rows, columns].unflatten(3, (groups, weight.shape[1]))


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """y [B, h, w, O] in x's type, contiguous."""
    sides = output_sides(x, weight, stride, padding, dilation)
    x_, weight_ = _wide(x, weight)
    grouped = weight_.unflatten(0, (groups, len(weight) // groups))
    y = x_.new_zeros(len(x), *sides, *grouped.shape[:2])
    for i, j, read in _taps(padded(x_, padding), weight, sides, stride, dilation, groups):
        y += torch.einsum("bhwgc,goc->bhwgo", read, grouped[..., i, j])
    y = y.flatten(3)
    return (y if bias is None else y + bias).to(x.dtype).contiguous()


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias, each in the type of its tensor, and empty where it is not `wanted`.

    For each tap, over images and positions, x the rows that it reads:

        dx += weight[:, :, i, j]^T dy        dweight[:, :, i, j] = sum of dy x^T        dbias = sum of dy
    """
    dy_, x_, weight_ = _wide(dy, x, weight)
    around, grouped = padded(x_, padding), weight_.unflatten(0, (groups, len(weight) // groups))
    dy_ = dy_.unflatten(3, grouped.shape[:2])
    daround, dgrouped = torch.zeros_like(around), torch.zeros_like(grouped)
    options = (dy.shape[1:3], stride, dilation, groups)
    for (i, j, read), (_, _, gathered) in zip(
        _taps(around, weight, *options), _taps(daround, weight, *options), strict=True
    ):
        gathered += torch.einsum("bhwgo,goc->bhwgc", dy_, grouped[..., i, j])
        dgrouped[..., i, j] = torch.einsum("bhwgo,bhwgc->goc", dy_, read)
    (top, left), (_, height, width, _) = padding, x.shape
    dx = daround[:, top : top + height, left : left + width].to(x.dtype)
    grads = (dx, dgrouped.flatten(0, 1).to(weight.dtype), dy_.sum((0, 1, 2)).flatten().to(weight.dtype))
    dx, dweight, dbias = (g.contiguous() if want else g.new_empty(0) for g, want in zip(grads, wanted, strict=True))
    return dx, dweight, dbias
