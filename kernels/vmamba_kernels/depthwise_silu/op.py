"""The registered ops vmamba::depthwise_silu and its backward: schemas, fake kernels, autograd, vmap, backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, one_by_one, vectorize
from . import compiled, reference

_INPUTS = "Tensor x, Tensor weight, Tensor? bias, str backend"

register(Backend("depthwise_silu", "cpu", devices=("cpu",), missing=lambda: compiled.missing("cpu")))
register(Backend("depthwise_silu", "reference"))


def backend_for(dtype: torch.dtype, kernel: int, device: str) -> str:
    """The name of the backend for images of that type and a kernel that wide; the compiled one knows float32 and 3."""
    special = dtype is torch.float32 and kernel == compiled.KERNEL
    return choose("depthwise_silu", device)[0].name if special else "reference"


def _module(x: Tensor, weight: Tensor, backend: str) -> Any:
    chosen = backend or backend_for(x.dtype, weight.shape[2], x.device.type)
    return reference if chosen == "reference" else compiled


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _module(x, weight, backend).forward(x, weight, bias)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):  # a backward may run inside one
        return _module(x, weight, backend).backward(dy, x, weight, bias)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else bias.shape)


forward = define("depthwise_silu", f"({_INPUTS}) -> Tensor", _forward, _forward_fake)
backward = define(
    "depthwise_silu_backward", f"(Tensor dy, {_INPUTS}) -> (Tensor, Tensor, Tensor)", _backward, _backward_fake
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _run_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = backward(dy, x, weight, bias, ctx.backend)
    return dx, dweight, None if bias is None else dbias, None


differentiate("depthwise_silu", _run_backward, _setup_context)
vectorize(forward, one_by_one(forward))
vectorize(backward, one_by_one(backward))
