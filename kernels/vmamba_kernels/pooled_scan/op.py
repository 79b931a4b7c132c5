"""The registered ops of the pooled scan: schemas, fake kernels, autograd, vmap, and the choice of a backend.

`vmamba::pooled_scan` takes u_full as [B, K, D, L] and carries the tokens as four sizes, which stay dynamic in a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, one_by_one, vectorize
from ..selective_scan.layout import empty_projection, empty_sequence, stored_states
from ..selective_scan.op import by_device, by_device_backward
from ..selective_scan.reference import Scan
from ..triton_support import triton_backend
from . import library, reference
from .arguments import Inputs
from .tokens import empty_full, empty_output

_TENSORS = "Tensor u_full, Tensor u_pooled, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias"
_OPTIONS = "SymInt[] tokens, int[] reverse, bool delta_softplus, bool average"
_GRADIENTS = ", ".join(["Tensor"] * 8)


class _Implementation(NamedTuple):
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, ...]]


def _implementation(backend: str) -> _Implementation:
    if backend in ("cpu", "cuda"):
        return _Implementation(library.forward, library.backward)
    if backend == "triton":
        module = import_module(f"{__package__}.triton")
        return _Implementation(module.forward, module.backward)
    if backend == "unfused":
        scan = Scan(by_device, by_device_backward)
        return _Implementation(partial(reference.forward, scan=scan), partial(reference.backward, scan=scan))
    return _Implementation(reference.forward, reference.backward)


def backend_for(dtype: torch.dtype, device: str) -> str:
    """The name of the backend for tensors of that type and device; float64 is for the reference alone."""
    return "reference" if dtype is torch.float64 else choose("pooled_scan", device)[0].name


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, out_dtype, save_states, backend = arguments
    inputs = Inputs(*given)
    backend = backend or backend_for(inputs.u_full.dtype, inputs.u_full.device.type)
    return _implementation(backend).forward(inputs, out_dtype, save_states)


def _backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *given, backend = arguments
    inputs = Inputs(*given[:8], *given[9:])
    backend = backend or backend_for(inputs.u_full.dtype, inputs.u_full.device.type)
    return _implementation(backend).backward(dy, inputs, given[8])


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, out_dtype, save_states, _ = arguments
    inputs = Inputs(*given)
    u_full, u_pooled, A, average = inputs.u_full, inputs.u_pooled, inputs.A, inputs.average
    batch, groups, channels, _ = u_full.shape
    d_state = A.shape[1]
    kept = stored_states(u_pooled.shape[2], d_state, u_full.device.type) if save_states else 0
    return empty_output(u_full, out_dtype, average), A.new_empty(groups, batch, kept, d_state, channels)


def _backward_fake(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    u_full, u_pooled, delta, A, B, C, D, delta_bias = arguments[:8]
    return (
        u_full.new_empty(0) if D is None else empty_full(u_full),
        empty_sequence(u_pooled, u_pooled.dtype),
        empty_sequence(delta, delta.dtype),
        A.new_empty(A.shape),
        empty_projection(B),
        empty_projection(C),
        A.new_empty(0 if D is None else A.shape[0]),
        A.new_empty(0 if delta_bias is None else delta.shape[1]),
    )


forward = define(
    "pooled_scan",
    f"({_TENSORS}, {_OPTIONS}, ScalarType out_dtype, bool save_states, str backend) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
backward = define(
    "pooled_scan_backward",
    f"(Tensor dy, {_TENSORS}, Tensor states, {_OPTIONS}, str backend) -> ({_GRADIENTS})",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *ctx.options, _, ctx.saved, ctx.backend = inputs[8:]
    ctx.save_for_backward(*inputs[:8], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _run_backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *inputs, states = ctx.saved_tensors
    if dy is None:
        return (None,) * 15
    if not ctx.saved:
        states = forward(*inputs, *ctx.options, torch.float32, True, ctx.backend)[1]
    du_full, *grads, dD, dbias = backward(dy, *inputs, states, *ctx.options, ctx.backend)
    if inputs[6] is None:
        du_full = dD = None
    return du_full, *grads, dD, None if inputs[7] is None else dbias, *(None,) * 7


differentiate("pooled_scan", _run_backward, _setup_context)
vectorize(forward, one_by_one(forward))
vectorize(backward, one_by_one(backward))

register(Backend("pooled_scan", "cpu", devices=("cpu",), missing=lambda: library.missing("cpu")))
register(Backend("pooled_scan", "cuda", devices=("cuda",), missing=lambda: library.missing("cuda")))
register(triton_backend("pooled_scan"))
register(Backend("pooled_scan", "unfused"))
register(Backend("pooled_scan", "reference"))
