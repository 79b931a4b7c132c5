"""The dense convolutions of the models: torch.nn.Conv2d, on a CPU one operator of compiled graphs and of training.

Around a convolution that it knows, inductor stores every map of four axes with its second axis innermost, where the
channels of a channel-first map are. Ours keep them last: each would be turned over and back, which takes longer than
all that the compiler fuses. `vmamba::conv2d` is the same convolution under a name that it does not know, and its
gradient is faster.
"""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from vmamba_kernels.backends import exporting, transformed
from vmamba_kernels.conv2d import conv2d, gains


@register_notrace_module
class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d on [B, C, H, W]; on a CPU, in a compiled graph and for gradients, one operator of its own."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._by_name(x, weight, bias):
            return super()._conv_forward(x, weight, bias)
        assert not isinstance(self.padding, str)
        options = (self.stride, self.padding, self.dilation, self.groups)
        return conv2d(x.permute(0, 2, 3, 1), weight, bias, *options).permute(0, 3, 1, 2)

    def _by_name(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        return (
            (torch.compiler.is_compiling() or self._learns(x, weight))
            and not exporting()
            and not transformed()
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
            and weight.requires_grad
            and type(x) is Tensor
            and type(weight) in (nn.Parameter, Tensor)
            and gains(weight, self.dilation, self.groups)
        )
