"""The depthwise 3x3 convolution and SiLU in float32 on the CPU, by the compiled library.

The library knows `vmamba::_depthwise_silu_rows` and its backward: dense float32 images, results written into tensors
that are there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..registration import library

KERNEL = 3

library.define("_depthwise_silu_rows(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) y) -> ()")
library.define(
    "_depthwise_silu_rows_backward(Tensor dy, Tensor x, Tensor weight, Tensor? bias, Tensor(a!) dx, Tensor(b!) dweight,"
    " Tensor(c!)? dbias) -> ()"
)
torch.library.register_fake("vmamba::_depthwise_silu_rows", lambda *_: None, lib=library)
torch.library.register_fake("vmamba::_depthwise_silu_rows_backward", lambda *_: None, lib=library)

missing = native.asked_once("_depthwise_silu_rows")


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    return x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `reference.forward`."""
    tensors = _dense(x, weight, bias)
    y = torch.empty_like(tensors[0])
    torch.ops.vmamba._depthwise_silu_rows(*tensors, y)
    return y


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`. The convolution is computed again."""
    tensors = _dense(x, weight, bias)
    grads = [None if t is None else torch.empty_like(t) for t in tensors]
    torch.ops.vmamba._depthwise_silu_rows_backward(dy.contiguous(), *tensors, *grads)
    dx, dweight, dbias = grads
    assert dx is not None and dweight is not None
    return dx, dweight, weight.new_empty(0) if dbias is None else dbias
