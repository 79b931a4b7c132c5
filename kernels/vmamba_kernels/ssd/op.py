"""The registered ops vmamba::ssd and vmamba::ssd_backward: schemas, fake kernels, autograd, vmap, choice of a backend.

An op names its backend, "" meaning the one that serves the tensors; nothing but the inputs is saved for the backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, vectorize
from ..selective_scan.batching import vmap_rule
from ..triton_support import triton_backend
from .arguments import Gradients, Inputs

_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, Tensor? initial_states, "
    "bool dt_softplus, float? dt_min, float? dt_max"
)
_EIGHT = ", ".join(["Tensor"] * 8)
# The axis of the heads, or of the groups, which a mapped dimension joins: more groups of heads of the same scan.
_AXES = {"x": 2, "dt": 2, "A": 0, "B": 2, "C": 2, "D": 0, "dt_bias": 0, "initial_states": 1}


def backend_for(dtype: torch.dtype, device: str) -> str:
    """The name of the backend for tensors of that type and device; float64 is for plain PyTorch."""
    return "chunked" if dtype is torch.float64 else choose("ssd", device)[0].name


def _implementation(x: Tensor, backend: str, direction: str) -> Callable[..., Any]:
    """forward or backward of a backend, whose module is imported when it first runs."""
    module = import_module(f"{__package__}.{backend or backend_for(x.dtype, x.device.type)}")
    return getattr(module, direction)


def _inputs(*given: Any) -> Inputs:
    """The inputs with infinity where a step size has no bound: packaged programs know no infinite argument."""
    *others, low, high = given
    return Inputs._make([*others, -math.inf if low is None else low, math.inf if high is None else high])


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, out_dtype, chunk, backend = arguments
    inputs = _inputs(*given)
    return _implementation(inputs.x, backend, "forward")(inputs, out_dtype, chunk)


def _backward(dy: Tensor, dlast: Tensor | None, *arguments: Any) -> Gradients:
    *given, chunk, backend = arguments
    inputs = _inputs(*given)
    return _implementation(inputs.x, backend, "backward")(dy, dlast, inputs, chunk)


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, out_dtype, _, _ = arguments
    x, _, A, B = Inputs(*given)[:4]
    batch, _, heads, width = x.shape
    return x.new_empty(x.shape, dtype=out_dtype), A.new_empty(batch, heads, width, B.shape[3])


def _backward_fake(dy: Tensor, dlast: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    x, dt, A, B, C, *optional = Inputs(*arguments[:-2])[:8]
    always = [t.new_empty(t.shape) for t in (x, dt, A, B, C)]
    return (*always, *(A.new_empty(0 if t is None else t.shape) for t in optional))


forward = define(
    "ssd", f"({_INPUTS}, ScalarType out_dtype, int chunk, str backend) -> (Tensor, Tensor)", _forward, _forward_fake
)
backward = define(
    "ssd_backward",
    f"(Tensor dy, Tensor? dlast, {_INPUTS}, int chunk, str backend) -> ({_EIGHT})",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.flags = (*inputs[8:11], *inputs[12:])
    ctx.set_materialize_grads(False)


def _run_backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors
    if dy is None and dlast is None:
        return (None,) * 14
    if dy is None:
        dy = torch.zeros_like(inputs[0])
    grads = backward(dy, dlast, *inputs, *ctx.flags)
    given = (None if tensor is None else grad for tensor, grad in zip(inputs, grads, strict=True))
    return (*given, None, None, None, None, None, None)


differentiate("ssd", _run_backward, _setup_context)
vectorize(forward, vmap_rule(forward, _AXES, (2, 1)))
vectorize(backward, vmap_rule(backward, {"dy": 2, "dlast": 1, **_AXES}, tuple(_AXES.values())))

register(triton_backend("ssd"))
register(Backend("ssd", "chunked"))
register(Backend("ssd", "reference"))
