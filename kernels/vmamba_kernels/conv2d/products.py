"""The convolution by PyTorch's own, and by matrix products with the windows of the image where those are faster.

oneDNN takes longer than such a product for the gradient of a weight where maps lie channel-last; and for a map of
few positions the forward spends its time on turning over the weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import output_sides, padded

FEW = 16  # input channels below which gathering the windows costs more than the product with them gains
WINDOWS = 2**24  # numbers in the windows that are gathered at once, at most


def gains(weight: Tensor, dilation: Sequence[int], groups: int) -> bool:
    """Whether the gradient of that weight is a product with windows that fit, and so faster than PyTorch's."""
    if weight.device.type != "cpu" or weight.dtype is not torch.float32 or weight.shape[1] < FEW:
        return False
    return groups == 1 and max(dilation) == 1


def _channel_first(x: Tensor) -> Tensor:
    """[B, C, H, W] in torch.channels_last from x [B, H, W, C], whatever stride the batch of a single image has."""
    return x.contiguous().view(-1).view(x.shape).permute(0, 3, 1, 2)


def _channel_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _windows(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """[B, h, w, C, m, n], a view of the padded image."""
    return padded(x, padding).unfold(1, weight.shape[2], stride[0]).unfold(2, weight.shape[3], stride[1])


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """As `reference.forward`."""
    height, width = output_sides(x, weight, stride, padding, dilation)
    # Of so small a map, turning over the weight, as a convolution does first, is most of its work.
    small = x.device.type == "cpu" and 4 * x.shape[0] * height * width < weight.shape[0]
    if groups > 1 or max(dilation) > 1 or not small:
        return _channel_last(torch.conv2d(_channel_first(x), weight, bias, stride, padding, dilation, groups))
    y = _windows(x, weight, stride, padding).flatten(3) @ weight.flatten(1).T
    return y if bias is None else y.add_(bias)


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
    """As `reference.backward`."""
    dx_wanted, weight_wanted, bias_wanted = wanted
    product = gains(weight, dilation, groups) and dy.shape[1] * dy.shape[2] * weight[0].numel() <= WINDOWS
    theirs = [dx_wanted, weight_wanted and not product, False]
    dx = dweight = None
    if any(theirs):
        images, sizes = (_channel_first(dy), _channel_first(x)), [weight.shape[0]]
        options = (stride, padding, dilation, False, [0, 0], groups, theirs)
        dx, dweight, _ = torch.ops.aten.convolution_backward(*images, weight, sizes, *options)
    if weight_wanted and product:
        dweight = _weight_gradient(dy, x, weight, stride, padding)
    return (
        x.new_empty(0) if dx is None else _channel_last(dx),
        x.new_empty(0) if dweight is None else dweight.contiguous(),
        dy.sum((0, 1, 2)) if bias_wanted else x.new_empty(0),
    )


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """[O, C, m, n]: dy^T times the windows of x, as many images at once as `WINDOWS` allows."""
    features, channels, rows, columns = weight.shape
    taps = rows * columns * channels
    total = weight.new_zeros(features, taps)
    images = WINDOWS // max(1, dy.shape[1] * dy.shape[2] * taps)
    for part, gradient in zip(x.split(images), dy.split(images)):
        windows = _windows(part, weight, stride, padding)
        windows = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, taps)  # a row's channels are copied as they lie
        total.addmm_(gradient.reshape(-1, features).T, windows)
    return total.view(features, rows, columns, channels).permute(0, 3, 1, 2)
