"""The root mean square norm in float32 on the CPU, by the compiled library.

The library knows `vmamba::_rms_norm_rows` and its backward: dense float32 rows, results written into tensors that are
there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..registration import library

library.define("_rms_norm_rows(Tensor x, Tensor weight, float eps, Tensor(a!) y) -> ()")
library.define(
    "_rms_norm_rows_backward(Tensor dy, Tensor x, Tensor weight, float eps, Tensor(a!) dx, Tensor(b!) dweight) -> ()"
)
torch.library.register_fake("vmamba::_rms_norm_rows", lambda *_: None, lib=library)
torch.library.register_fake("vmamba::_rms_norm_rows_backward", lambda *_: None, lib=library)

missing = native.asked_once("_rms_norm_rows")

_rows = torch.ops.vmamba._rms_norm_rows.default
_rows_backward = torch.ops.vmamba._rms_norm_rows_backward.default


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `reference.forward`."""
    x = x.contiguous()
    y = torch.empty_like(x)
    _rows(x, weight.contiguous(), eps, y)
    return y


def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `reference.backward`."""
    x, weight = x.contiguous(), weight.contiguous()
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    _rows_backward(dy.contiguous(), x, weight, eps, dx, dweight)
    return dx, dweight
