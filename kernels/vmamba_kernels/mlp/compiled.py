"""The MLP in float32 on the CPU: PyTorch's matrix products, and the compiled bias and GELU between them.

The library knows `vmamba::_bias_gelu_rows`, y = gelu(x + bias), and its backward, which gives y once more if asked:
dense float32 rows, results written into tensors that are there, y over x and dx over dy too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from ..registration import library
from .reference import rows

library.define("_bias_gelu_rows(Tensor x, Tensor bias, Tensor(a!) y) -> ()")
library.define(
    "_bias_gelu_rows_backward(Tensor dy, Tensor x, Tensor bias, Tensor(a!) dx, Tensor(b!) dbias, Tensor(c!)? y) -> ()"
)
torch.library.register_fake("vmamba::_bias_gelu_rows", lambda x, bias, y: None, lib=library)
torch.library.register_fake("vmamba::_bias_gelu_rows_backward", lambda dy, x, bias, dx, dbias, y: None, lib=library)

missing = native.asked_once("_bias_gelu_rows")

# oneDNN's products have the better kernels for few inputs and many outputs; PyTorch's own linear layers take the BLAS.
BY_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()


def _widened(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, C] weight^T for a weight [F, C] of more rows than columns, stored by rows or by columns."""
    if not BY_ONEDNN or x.numel() == 0:
        return torch.mm(x, weight.T)
    dense = weight if weight.T.is_contiguous() else weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, dense, None, "none", [], "")


def forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, keep_hidden: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    hidden = _widened(rows(x).contiguous(), weight1)
    active = torch.empty_like(hidden) if keep_hidden else hidden
    torch.ops.vmamba._bias_gelu_rows(hidden, bias1.contiguous(), active)
    y = torch.addmm(bias2, active, weight2.T).view(*x.shape[:-1], weight2.shape[0])
    return y, hidden.view(*x.shape[:-1], weight1.shape[0]) if keep_hidden else x.new_empty(0, weight1.shape[0])


def backward(
    dy: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, hidden: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.backward`. The activation is computed again, in one pass with its derivative."""
    dy_, x_, hidden_, bias1 = rows(dy).contiguous(), rows(x).contiguous(), rows(hidden), bias1.contiguous()
    dx, dweight1, dbias1, dweight2, dbias2 = (x.new_empty(0) for _ in wanted)
    if any(wanted[:3]):
        dhidden, sums = _widened(dy_, weight2.T), torch.empty_like(bias1)
        active = torch.empty_like(dhidden) if wanted[3] else None
        torch.ops.vmamba._bias_gelu_rows_backward(dhidden, hidden_, bias1, dhidden, sums, active)
        dweight2 = dweight2 if active is None else torch.mm(dy_.T, active)
        del active
        dx = torch.mm(dhidden, weight1).view(x.shape) if wanted[0] else dx
        dweight1 = torch.mm(dhidden.T, x_) if wanted[1] else dweight1
        dbias1 = sums if wanted[2] else dbias1
    elif wanted[3]:
        active = torch.empty_like(hidden_)
        torch.ops.vmamba._bias_gelu_rows(hidden_, bias1, active)
        dweight2 = torch.mm(dy_.T, active)
    return dx, dweight1, dbias1, dweight2, dy_.sum(0) if wanted[4] else dbias2
