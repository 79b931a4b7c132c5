"""The registered ops of the selective scan: schema, fake kernels, autograd, vmap, and the choice of a backend.

`vmamba::selective_scan` runs the native kernel of the tensor's device if a compiled library brought one, else
the Triton kernels on a GPU, else the reference. `vmamba::selective_scan_triton` and `vmamba::selective_scan_reference`
always run what they are called. Each has its own backward op.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..backends import Backend, choose, register
from ..registration import define, differentiate, vectorize
from ..triton_support import triton_backend
from . import reference
from .batching import BACKWARD_AXES, BACKWARD_RESULTS, FORWARD_AXES, FORWARD_RESULTS, vmap_rule
from .layout import empty_projection, empty_sequence, stored_states

_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias"
_FORWARD = f"({_INPUTS}, bool delta_softplus, ScalarType out_dtype, bool save_states) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor dout, Tensor? dlast_state, {_INPUTS}, Tensor states, bool delta_softplus)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward_fake(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = u.shape
    d_state = A.shape[1]
    kept = stored_states(length, d_state, u.device.type) if save_states else 0
    return (
        empty_sequence(u, out_dtype),
        A.new_empty(batch, channels, d_state),
        A.new_empty(batch, kept, d_state, channels),
    )


def _backward_fake(
    dout: Tensor,
    dlast_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        empty_sequence(u, u.dtype),
        empty_sequence(delta, delta.dtype),
        A.new_empty(A.shape),
        empty_projection(B),
        empty_projection(C),
        A.new_empty(0 if D is None else u.shape[1]),
        A.new_empty(0 if delta_bias is None else delta.shape[1]),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], output[2])
    ctx.delta_softplus, _, ctx.saved = inputs[7:]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _run_backward(forward: torch._ops.OpOverload, backward: torch._ops.OpOverload) -> Callable[..., Any]:
    """The gradient of `forward`, which scans again where it kept no states."""

    def run(ctx: Any, dout: Tensor | None, dlast_state: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        u, delta, A, B, C, D, delta_bias, states = ctx.saved_tensors
        if dout is None and dlast_state is None:
            return (None,) * 10
        if not ctx.saved:
            states = forward(u, delta, A, B, C, D, delta_bias, ctx.delta_softplus, A.dtype, True)[2]
        if dout is None:
            dout = torch.zeros_like(u, dtype=A.dtype)
        grads = backward(dout, dlast_state, u, delta, A, B, C, D, delta_bias, states, ctx.delta_softplus)
        dD = None if D is None else grads[5]
        dbias = None if delta_bias is None else grads[6]
        return (*grads[:5], dD, dbias, None, None, None)

    return run


def _triton(function: str) -> Callable[..., Any]:
    """`forward` or `backward` of the Triton kernels, which are imported when they are first called."""

    def run(*arguments: Any) -> Any:
        return getattr(import_module(f"{__package__}.triton"), function)(*arguments)

    return run


def _without_library(function: str, position: int) -> Callable[..., Any]:
    """The same of the best backend that needs no compiled library, by the device of the argument u."""
    by_name = {"triton": _triton(function), "reference": getattr(reference, function)}

    def run(*arguments: Any) -> Any:
        u = arguments[position]
        name = "reference" if u.dtype is torch.float64 else choose("selective_scan", u.device.type)[0].name
        return by_name.get(name, by_name["reference"])(*arguments)

    return run


def _define_pair(
    name: str, run: Callable[..., Any], run_backward: Callable[..., Any]
) -> tuple[torch._ops.OpOverload, torch._ops.OpOverload]:
    """Define `name` and `name_backward`, with fake kernels, autograd and vmap; return both ops."""
    forward = define(name, _FORWARD, run, _forward_fake)
    backward = define(f"{name}_backward", _BACKWARD, run_backward, _backward_fake)
    differentiate(name, _run_backward(forward, backward), _setup_context)
    vectorize(forward, vmap_rule(forward, FORWARD_AXES, FORWARD_RESULTS))
    vectorize(backward, vmap_rule(backward, BACKWARD_AXES, BACKWARD_RESULTS))
    return forward, backward


by_device, by_device_backward = _define_pair(
    "selective_scan", _without_library("forward", 0), _without_library("backward", 2)
)
on_triton, on_triton_backward = _define_pair("selective_scan_triton", _triton("forward"), _triton("backward"))
on_reference, on_reference_backward = _define_pair("selective_scan_reference", reference.forward, reference.backward)

cpu_library = native.load("cpu")
register(Backend("selective_scan", "cpu", devices=("cpu",), missing=lambda: native.load("cpu").reason))
cuda_library = native.load("cuda")
register(Backend("selective_scan", "cuda", devices=("cuda",), missing=lambda: native.load("cuda").reason))
register(triton_backend("selective_scan"))
register(Backend("selective_scan", "reference"))
