"""The pooled scan by a compiled library, which implements `vmamba::_pooled_scan` for the device it serves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from ..registration import library
from ..selective_scan.layout import chunk_length, empty_sequence
from .arguments import Inputs
from .tokens import is_channel_last

_TENSORS = "Tensor u_full, Tensor u_pooled, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias"
_OPTIONS = "int outer, int pool1, int inner, int pool2, int reverse, bool delta_softplus, bool average, int chunk"
library.define(f"_pooled_scan({_TENSORS}, {_OPTIONS}, ScalarType out_dtype, bool save_states) -> (Tensor, Tensor)")
library.define(
    f"_pooled_scan_backward(Tensor dy, {_TENSORS}, Tensor states, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


missing = native.asked_once("_pooled_scan")


def mask(reverse: Sequence[bool]) -> int:
    """The reversed groups as the bits of a number."""
    return sum(1 << group for group, back in enumerate(reverse) if back)


def lined_up(u_full: Tensor) -> Tensor:
    """u_full [B, K, D, L] with the channels or the tokens side by side: itself, or a copy."""
    return u_full if is_channel_last(u_full) or u_full.stride(3) == 1 else u_full.contiguous()


def lined_up_as(dy: Tensor, u_full: Tensor) -> Tensor:
    """dy [B, D, L] in the layout of u_full: itself, or a copy."""
    axis = 1 if is_channel_last(u_full) else 2
    return dy if dy.stride(axis) == 1 else dy.transpose(axis, 2).contiguous().transpose(axis, 2)


def _channels_dense(x: Tensor) -> Tensor:
    """x [B, C, P] with the channels side by side, as the CUDA kernels walk it: itself, or a copy."""
    return x if not x.is_cuda or x.stride(1) == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)


def _as_stored(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of a pooled tensor in that tensor's layout."""
    expected = empty_sequence(like, like.dtype, device="meta")  # its strides, without its memory
    return gradient if gradient.stride() == expected.stride() else empty_sequence(like, like.dtype).copy_(gradient)


def _tensors(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Those of the inputs, as the library reads them."""
    u_full, u_pooled, delta, *weights = inputs[:8]
    return lined_up(u_full), _channels_dense(u_pooled), _channels_dense(delta), *weights


def _options(inputs: Inputs) -> tuple[int, ...]:
    """The others: sizes, reversed groups and flags."""
    chunk = chunk_length(inputs.A.shape[1], inputs.A.device.type)
    return *inputs.tokens, mask(inputs.reverse), inputs.delta_softplus, inputs.average, chunk


def forward(inputs: Inputs, out_dtype: torch.dtype, save_states: bool) -> tuple[Tensor, Tensor]:
    """As `reference.forward`."""
    return torch.ops.vmamba._pooled_scan(*_tensors(inputs), *_options(inputs), out_dtype, save_states)


def backward(dy: Tensor, inputs: Inputs, states: Tensor) -> tuple[Tensor, ...]:
    """As `reference.backward`."""
    dy = lined_up_as(dy, inputs.u_full)
    grads = torch.ops.vmamba._pooled_scan_backward(dy, *_tensors(inputs), states, *_options(inputs))
    du_full, du, ddelta, *rest = grads
    return du_full, _as_stored(du, inputs.u_pooled), _as_stored(ddelta, inputs.delta), *rest
