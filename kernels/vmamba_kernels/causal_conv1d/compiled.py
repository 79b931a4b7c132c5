"""The causal convolution by a compiled library, which fills tensors that are allocated here.

`reverse` travels as the bits of an integer, group 0 the lowest. `partial` [P, G, W+1, C] takes the sums of dweight and
dbias of P parts of batch and time; which parts these are depends on the shape alone, so the result does too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from ..registration import library
from ..selective_scan.layout import empty_sequence, is_channel_last
from .layout import empty_output, laid_out_like, side_by_side

_INPUTS = "Tensor x, Tensor weight, Tensor? bias"
_OPTIONS = "int reverse, bool silu, bool flip_output"
CUDA_STEPS = 128  # of a part where channels lie side by side
CUDA_ALIGNED_STEPS = 256  # of a part where time steps lie side by side, from an address that 16 bytes divide

library.define(f"_causal_conv1d({_INPUTS}, Tensor(a!) out, {_OPTIONS}) -> ()")
library.define(
    f"_causal_conv1d_backward(Tensor dy, {_INPUTS}, Tensor(a!) dx, Tensor(b!) dweight, Tensor(c!) dbias, "
    f"Tensor(d!) partial, {_OPTIONS}) -> ()"
)


missing = native.asked_once("_causal_conv1d")


def parts(x: Tensor) -> int:
    """P: how many sums of the weights' gradients are taken apart before they are added."""
    batch, _, length = x.shape
    if x.device.type == "cpu":
        return min(batch, native.CPU_TASKS)
    if is_channel_last(x):
        return batch * -(-length // CUDA_STEPS)
    return batch * -(-(length + 7) // CUDA_ALIGNED_STEPS)


def bits(reverse: list[bool]) -> int:
    """The directions as the library reads them."""
    return sum(1 << g for g, is_reversed in enumerate(reverse) if is_reversed)


def _filters(weight: Tensor) -> Tensor:
    """The weight, dense and from an address that 16 bytes divide: a view of a larger tensor may start anywhere."""
    weight = weight.contiguous()
    return weight.clone() if weight.data_ptr() % 16 else weight


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: list[bool], silu: bool, flip_output: bool
) -> Tensor:
    """As `reference.forward`."""
    out = empty_output(x, weight.shape[0] * weight.shape[1])
    if x.device.type != "cpu":
        x = laid_out_like(side_by_side(x), out)
    if x.numel():
        bias = None if bias is None else bias.contiguous()
        torch.ops.vmamba._causal_conv1d(x, _filters(weight), bias, out, bits(reverse), silu, flip_output)
    return out


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: list[bool], silu: bool, flip_output: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`."""
    dx = empty_sequence(x, x.dtype)
    if x.device.type != "cpu":
        x = laid_out_like(side_by_side(x), dx)
        dy = laid_out_like(dy, dx)
    return dx, *backward_into(dx, dy, x, weight, bias, reverse, silu, flip_output)


def backward_into(
    dx: Tensor,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: list[bool],
    silu: bool,
    flip_output: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias; that of x is written to `dx`, which on the CPU may have any strides."""
    groups, channels, width = weight.shape
    if not x.numel():
        return torch.zeros_like(weight), weight.new_zeros((0,) if bias is None else bias.shape)
    dweight = weight.new_empty(weight.shape)
    dbias = weight.new_empty((0,) if bias is None else bias.shape)
    partial = weight.new_empty(parts(x), groups, width + 1, channels)
    bias = None if bias is None else bias.contiguous()
    torch.ops.vmamba._causal_conv1d_backward(
        dy, x, _filters(weight), bias, dx, dweight, dbias, partial, bits(reverse), silu, flip_output
    )
    return dweight, dbias
