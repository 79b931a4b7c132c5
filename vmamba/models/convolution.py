"""The dense convolutions of the models: torch.nn.Conv2d, on a CPU one operator of compiled graphs and of training.

Around a convolution that it knows, inductor stores every map of four axes with its second axis innermost, where the
channels of a channel-first map are. Ours keep them last: each would be turned over and back, which takes longer than
all that the compiler fuses. `vmamba::_convolution` is the same convolution under a name that it does not know. And its
gradient is faster: that of a weight, which oneDNN takes twice as long for on such maps, is a matrix product with the
windows.

B batch, H x W positions, C channels, O output channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vmamba_kernels.backends import constant_in_graphs
from vmamba_kernels.registration import define, differentiate, one_by_one, vectorize

_OPTIONS = "int[] stride, int[] padding, int[] dilation, int groups"
_FEW = 16  # input channels below which gathering the windows costs more than the product with them gains
_WINDOWS = 2**24  # numbers in the windows that are gathered at once, at most


@constant_in_graphs
def exporting() -> bool:
    """Whether torch.export traces. Asked directly, the answer in a graph of torch.compile would always be yes."""
    return torch.compiler.is_exporting()


def _channel_first(x: Tensor) -> Tensor:
    """[B, C, H, W] in torch.channels_last from x [B, H, W, C], whatever stride the batch of a single image has."""
    return x.contiguous().view(-1).view(x.shape).permute(0, 3, 1, 2)


def _channel_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    stride, padding, dilation, groups = options
    if groups > 1 or max(dilation) > 1 or not _small(x, weight, stride, padding):
        return _channel_last(torch.conv2d(_channel_first(x), weight, bias, *options))
    (top, left), (rows, columns) = padding, weight.shape[2:]
    windows = F.pad(x, (0, 0, left, left, top, top)).unfold(1, rows, stride[0]).unfold(2, columns, stride[1])
    y = windows.flatten(3) @ weight.flatten(1).T  # [B, h, w, C * rows * columns] by [C * rows * columns, O]
    return y if bias is None else y.add_(bias)


def _small(x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> bool:
    """Whether a map is so small that turning over the weight, as a convolution does first, is most of its work."""
    sides = [(x.shape[1 + i] + 2 * padding[i] - weight.shape[2 + i]) // stride[i] + 1 for i in (0, 1)]
    return min(sides) > 0 and 4 * x.shape[0] * sides[0] * sides[1] < weight.shape[0]


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    batch, channels, height, width = torch.conv2d(x.permute(0, 3, 1, 2), weight, bias, *options).shape
    return x.new_empty(batch, height, width, channels)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, groups, wants_dx = options
    ours = weight.dtype is torch.float32 and groups == 1 and max(dilation) == 1 and weight.shape[1] >= _FEW
    ours = ours and dy.shape[1] * dy.shape[2] * weight[0].numel() <= _WINDOWS
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        _channel_first(dy),
        _channel_first(x),
        weight,
        [weight.shape[0]],
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [wants_dx, not ours, not ours],
    )
    if ours:
        dweight, dbias = _weight_gradient(dy, x, weight, stride, padding), dy.sum((0, 1, 2))
    return _channel_last(dx) if wants_dx else x.new_empty(0), dweight.contiguous(), dbias


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """[O, C, rows, columns]: dy^T times the windows of x, as many images at once as `_WINDOWS` allows."""
    features, channels, rows, columns = weight.shape
    taps = rows * columns * channels
    total = weight.new_zeros(features, taps)
    images = _WINDOWS // max(1, dy.shape[1] * dy.shape[2] * taps)
    for part, gradient in zip(x.split(images), dy.split(images)):
        padded = F.pad(part, (0, 0, padding[1], padding[1], padding[0], padding[0]))
        windows = padded.unfold(1, rows, stride[0]).unfold(2, columns, stride[1])  # [B, h, w, C, rows, columns]
        windows = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, taps)  # a row's channels are copied as they lie
        total.addmm_(gradient.reshape(-1, features).T, windows)
    return total.view(features, rows, columns, channels).permute(0, 3, 1, 2)


def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape if options[4] else 0), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


forward = define(
    "_convolution", f"(Tensor x, Tensor weight, Tensor? bias, {_OPTIONS}) -> Tensor", _forward, _forward_fake
)
backward = define(
    "_convolution_backward",
    f"(Tensor dy, Tensor x, Tensor weight, {_OPTIONS}, bool wants_dx) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _run_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    wants_dx = ctx.needs_input_grad[0]
    dx, dweight, dbias = backward(dy, *ctx.saved_tensors, *ctx.options, wants_dx)
    return dx if wants_dx else None, dweight, dbias if ctx.has_bias else None, None, None, None, None


differentiate("_convolution", _run_backward, _setup_context)
vectorize(forward, one_by_one(forward))
vectorize(backward, one_by_one(backward))


@register_notrace_module
class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d on [B, C, H, W]; on a CPU, in a compiled graph and for gradients, one operator of its own."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._by_name(x, weight, bias):
            return super()._conv_forward(x, weight, bias)
        y = forward(
            x.permute(0, 2, 3, 1), weight, bias, self.stride, self.padding, self.dilation, self.groups
        )  # [B, h, w, O]
        return y.permute(0, 3, 1, 2)

    def _by_name(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        return (
            (torch.compiler.is_compiling() or self._learns(x, weight))
            and not exporting()
            and not torch.jit.is_tracing()
            and x.device.type == "cpu"
            and x.dim() == 4
            and x.dtype is weight.dtype
            and (bias is None or x.dtype is bias.dtype)
            and not torch.is_autocast_enabled("cpu")
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )

    def _learns(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the operator's own gradient of the weight will be asked for: of plain tensors, outside a graph."""
        return (
            torch.is_grad_enabled()
            and torch._C._functorch.peek_interpreter_stack()
            is None  # a transform of torch.func differentiates plain ops
            and weight.requires_grad
            and type(x) is Tensor
            and type(weight) in (nn.Parameter, Tensor)
            and weight.dtype is torch.float32
            and weight.shape[1] >= _FEW
        )
