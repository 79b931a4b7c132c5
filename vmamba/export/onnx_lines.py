"""The causal convolution and the pooled scan in ONNX: Vim's and FastVim's operators, for any sizes.

Shapes: B batch, G or K groups, C or D channels of a group, L tokens, P pooled steps, W taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import opset18

from ..errors import UserError
from .onnx_orders import ints
from .onnx_scan import INFERENCE, cast, no_states, recurrence

op: Any = opset18  # its types are narrower than what its functions take
_LEAST = -(2**63)


def _reversed(x: Any, axis: int) -> Any:
    return op.Slice(x, ints(-1), ints(_LEAST), ints(axis), ints(-1))


def causal_conv1d(
    x: Any, weight: Any, bias: Any, reverse: Sequence[bool], silu: bool, flip_output: bool, backend: str = ""
) -> Any:
    """The value of `vmamba::causal_conv1d`: [B, G*C, L]."""
    _, channels, taps = weight.shape
    shared, dtype = x.shape[1] == channels, x.dtype
    x = cast(x, weight.dtype)
    groups = []
    for g, backward in enumerate(reverse):
        part = x if shared else op.Slice(x, ints(g * channels), ints((g + 1) * channels), ints(1))
        part = _reversed(part, 2) if backward else part
        number = op.Constant(value_int=g)
        filters = op.Reshape(op.Gather(weight, number, axis=0), ints(channels, 1, taps))
        offsets = [] if bias is None else [op.Gather(bias, number, axis=0)]
        y = op.Conv(part, filters, *offsets, group=channels, kernel_shape=[taps], pads=[taps - 1, 0])
        y = op.Mul(y, op.Sigmoid(y)) if silu else y
        groups.append(_reversed(y, 2) if backward and not flip_output else y)
    y = groups[0] if len(groups) == 1 else op.Concat(*groups, axis=1)
    return op.Cast(y, to=dtype)


def pooled_scan(
    u_full: Any,
    u_pooled: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    delta_bias: Any,
    tokens: Any,
    reverse: Sequence[bool],
    delta_softplus: bool,
    average: bool,
    out_dtype: int = 1,
    save_states: bool = False,
    backend: str = "",
) -> tuple[Any, Any]:
    """The values of `vmamba::pooled_scan`: [B, K*D, L], averaged [B, D, L], and no stored states."""
    if save_states:
        raise UserError(f"pooled_scan: {INFERENCE}")
    groups, channels = u_full.shape[1:3]
    joined = groups * channels
    if delta.shape[1] != joined:
        raise UserError("pooled_scan: a delta that several channels share has no ONNX form here")
    steps, delta = (_oriented(cast(x, A.dtype), reverse, channels, 2) for x in (u_pooled, delta))
    B, C = (_oriented(cast(x, A.dtype), reverse, 1, 3) for x in (B, C))
    z, _ = recurrence(steps, delta, A, B, C, None, delta_bias, delta_softplus, (groups, channels, A.shape[1]))
    outer, pool1, inner, pool2 = _sizes(tokens)
    lines = op.Reshape(
        _oriented(z, reverse, channels, 2), op.Concat(ints(0, joined), outer, ints(1), inner, ints(1), axis=0)
    )
    y = op.Expand(lines, op.Concat(ints(1, 1), outer, pool1, inner, pool2, axis=0))
    y = op.Reshape(y, ints(0, groups, channels, -1))  # [B, K, D, L]
    if D is not None:
        y = op.Add(y, op.Mul(cast(u_full, A.dtype), op.Reshape(D, ints(groups, channels, 1))))
    y = op.ReduceMean(y, ints(1), keepdims=0) if average else op.Reshape(y, ints(0, joined, -1))
    return op.Cast(y, to=out_dtype), no_states(u_full, A)


def _sizes(tokens: Any) -> list[Any]:
    """The four sizes, each as a tensor of one integer, of numbers, of values of the graph, or of one tensor of them."""
    if isinstance(tokens, ir.Value):
        return [op.Slice(tokens, ints(i), ints(i + 1), ints(0)) for i in range(4)]
    return [ints(size) if isinstance(size, int) else op.Reshape(size, ints(1)) for size in tokens]


def _oriented(x: Any, reverse: Sequence[bool], size: int, axis: int) -> Any:
    """x with the steps, along `axis`, of the reversed groups in the other order; a group has `size` of its channels."""
    parts = []
    for k, backward in enumerate(reverse):
        part = op.Slice(x, ints(k * size), ints((k + 1) * size), ints(1))
        parts.append(_reversed(part, axis) if backward else part)
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=1)
