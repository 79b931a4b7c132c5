"""The registered ops vmamba::mamba_inner and vmamba::mamba_inner_backward: schemas, fakes, autograd, vmap, backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, one_by_one, vectorize
from . import compiled, reference
from .reference import Gradients, Inputs, Kept, kept_states

_TENSORS = (
    "Tensor xz, Tensor conv_weight, Tensor? conv_bias, Tensor x_weight, Tensor dt_weight, Tensor A, Tensor D, "
    "Tensor delta_bias"
)
_KEPT = "Tensor u, Tensor x_dbl, Tensor scanned, Tensor states"
_OPTIONS = "int[] reverse, float scale"

register(Backend("mamba_inner", "cpu", devices=("cpu",), missing=lambda: compiled.missing("cpu")))
register(Backend("mamba_inner", "reference"))


def compiled_for(dtype: torch.dtype, channels: int) -> bool:
    """Whether the compiled backend knows that type and that inner width."""
    return dtype is torch.float32 and channels > 0 and channels % compiled.CHANNELS == 0


def backend_for(dtype: torch.dtype, device: str, channels: int) -> str:
    """The name of the backend for that type, device type and inner width."""
    return choose("mamba_inner", device)[0].name if compiled_for(dtype, channels) else "reference"


def _module(inputs: Inputs, backend: str) -> Any:
    name = backend or backend_for(inputs.xz.dtype, inputs.xz.device.type, inputs.conv_weight.shape[1])
    return reference if name == "reference" else compiled


def _inputs(*arguments: Any) -> Inputs:
    *tensors, reverse, scale = arguments
    return Inputs._make([*tensors, [bool(r) for r in reverse], scale])


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, reverse, scale, keep, backend = arguments
    inputs = _inputs(*tensors, reverse, scale)
    with torch.autocast(inputs.xz.device.type, enabled=False):
        y, kept = _module(inputs, backend).forward(inputs, keep)
    return y, *kept


def _backward(dy: Tensor, *arguments: Any) -> Gradients:
    *tensors, u, x_dbl, scanned, states, reverse, scale, backend = arguments
    inputs, kept = _inputs(*tensors, reverse, scale), Kept(u, x_dbl, scanned, states)
    with torch.autocast(inputs.xz.device.type, enabled=False):  # a backward may run inside one
        return _module(inputs, backend).backward(dy, inputs, kept)


def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, reverse, scale, keep, _ = arguments
    xz, conv_weight, _, x_weight, _, A, _, _ = tensors
    batch, length, _ = xz.shape
    groups, channels, _ = conv_weight.shape
    y = xz.new_empty(batch, length, channels)
    if not keep:
        return y, *(xz.new_empty(0) for _ in range(4))
    kept = (
        xz.new_empty(batch, length, groups * channels),
        xz.new_empty(batch, length, groups * x_weight.shape[1]),
        xz.new_empty(batch, length, channels),
        xz.new_empty(batch, kept_states(length), A.shape[1], groups * channels),
    )
    return y, *kept


def _backward_fake(dy: Tensor, *arguments: Any) -> Gradients:
    return Gradients(*(dy.new_empty(0 if t is None else t.shape) for t in arguments[:8]))


forward = define(
    "mamba_inner",
    f"({_TENSORS}, {_OPTIONS}, bool keep, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
backward = define(
    "mamba_inner_backward",
    f"(Tensor dy, {_TENSORS}, {_KEPT}, {_OPTIONS}, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.reverse, ctx.scale, ctx.kept, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _run_backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # asked for once, as activation checkpointing demands
    tensors, kept = saved[:8], saved[8:]
    if dy is None:
        return (None,) * 12
    if not ctx.kept:
        kept = forward(*tensors, ctx.reverse, ctx.scale, True, ctx.backend)[1:]
    grads = list(backward(dy, *tensors, *kept, ctx.reverse, ctx.scale, ctx.backend))
    if tensors[2] is None:
        grads[2] = None
    return *grads, None, None, None, None


differentiate("mamba_inner", _run_backward, _setup_context)
vectorize(forward, one_by_one(forward))
vectorize(backward, one_by_one(backward))
