"""The registered ops of ss2d: schemas, fake kernels, autograd, vmap, and the choice of a backend.

`vmamba::ss2d` carries the name of the order and of the backend; the map is made from the sizes at hand when it runs,
so H and W stay dynamic in a graph. Its backward is `vmamba::ss2d_backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, one_by_one, vectorize
from ..selective_scan.op import by_device, by_device_backward
from ..selective_scan.reference import Scan
from ..triton_support import triton_backend
from . import reference, sequences
from .arguments import Gradients, Inputs
from .layout import empty_image, graph_states, in_graph, sizes, stored_states

_INPUTS = "Tensor x, Tensor x_dbl, Tensor dt_weight, Tensor A, Tensor? D, Tensor? delta_bias"


class _Implementation(NamedTuple):
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., Gradients]


def _module(module: ModuleType) -> _Implementation:
    return _Implementation(module.forward, module.backward)


def _triton() -> _Implementation:
    """The Triton kernels, imported when they are first called."""

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        return import_module(f"{__package__}.triton").forward(*arguments)

    def backward(*arguments: Any) -> Gradients:
        return import_module(f"{__package__}.triton").backward(*arguments)

    return _Implementation(forward, backward)


def _unfused() -> _Implementation:
    """The reference's composition, with the selective scan of the tensor's device inside."""
    scan = Scan(by_device, by_device_backward)
    return _Implementation(partial(reference.forward, scan=scan), partial(reference.backward, scan=scan))


_implementations = {
    "cpu": _module(sequences),
    "cuda": _module(sequences),
    "triton": _triton(),
    "unfused": _unfused(),
    "reference": _module(reference),
}


def backend_for(dtype: torch.dtype, device: str) -> str:
    """The name of the backend for tensors of that type and device; float64 is for the reference alone."""
    return "reference" if dtype is torch.float64 else choose("ss2d", device)[0].name


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, out_dtype, save_states, backend = arguments
    inputs = Inputs(*given)
    run = _implementations[backend or backend_for(inputs.x.dtype, inputs.x.device.type)].forward
    y, states = run(inputs, out_dtype, save_states)
    return y, in_graph(states) if save_states else states


def _backward(dy: Tensor, *arguments: Any) -> Gradients:
    *tensors, states, order, channel_first, backend = arguments
    inputs = Inputs(*tensors, order, channel_first)
    device = inputs.x.device.type
    run = _implementations[backend or backend_for(inputs.x.dtype, device)].backward
    _, _, H, W = sizes(inputs.x, channel_first)
    kept = stored_states(H * W, inputs.A.shape[1], device)
    return run(dy, inputs, states[:, :kept].contiguous() if kept < 2 else states)


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, out_dtype, save_states, _ = arguments
    x, _, _, A, _, _, _, channel_first = Inputs(*given)
    batch, _, H, W = sizes(x, channel_first)
    d_state = A.shape[1]
    kept = graph_states(H * W, d_state, x.device.type) if save_states else 0
    return empty_image(x, out_dtype, channel_first), A.new_empty(batch, kept, d_state, A.shape[0])


def _backward_fake(dy: Tensor, *arguments: Any) -> Gradients:
    x, x_dbl, dt_weight, A, D, delta_bias, _, _, channel_first, _ = arguments
    return (
        empty_image(x, x.dtype, channel_first),
        empty_image(x_dbl, x_dbl.dtype, channel_first),
        dt_weight.new_empty(dt_weight.shape),
        A.new_empty(A.shape),
        A.new_empty(0 if D is None else A.shape[0]),
        A.new_empty(0 if delta_bias is None else A.shape[0]),
    )


forward = define(
    "ss2d",
    f"({_INPUTS}, str order, bool channel_first, ScalarType out_dtype, bool save_states, str backend)"
    " -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
backward = define(
    "ss2d_backward",
    f"(Tensor dy, {_INPUTS}, Tensor states, str order, bool channel_first, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, x_dbl, dt_weight, A, D, delta_bias, ctx.order, ctx.channel_first, _, ctx.saved, ctx.backend = inputs
    ctx.save_for_backward(x, x_dbl, dt_weight, A, D, delta_bias, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _run_backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *inputs, states = ctx.saved_tensors
    if dy is None:
        return (None,) * 11
    if not ctx.saved:
        states = forward(*inputs, ctx.order, ctx.channel_first, torch.float32, True, ctx.backend)[1]
    *grads, dD, dbias = backward(dy, *inputs, states, ctx.order, ctx.channel_first, ctx.backend)
    dD, dbias = None if inputs[4] is None else dD, None if inputs[5] is None else dbias
    return *grads, dD, dbias, None, None, None, None, None


differentiate("ss2d", _run_backward, _setup_context)
vectorize(forward, one_by_one(forward))
vectorize(backward, one_by_one(backward))

register(Backend("ss2d", "cpu", devices=("cpu",), missing=lambda: sequences.missing("cpu")))
register(Backend("ss2d", "cuda", devices=("cuda",), missing=lambda: sequences.missing("cuda")))
register(triton_backend("ss2d"))
register(Backend("ss2d", "unfused"))
register(Backend("ss2d", "reference"))
