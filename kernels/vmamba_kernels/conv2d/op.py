"""The registered ops vmamba::conv2d and its backward: schemas, fake kernels, autograd, vmap, backends."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, one_by_one, vectorize
from . import products, reference

_OPTIONS = "int[] stride, int[] padding, int[] dilation, int groups"

register(Backend("conv2d", "pytorch"))
register(Backend("conv2d", "reference"))

_MODULES = {"pytorch": products, "reference": reference}


def _module(x: Tensor, backend: str) -> ModuleType:
    return _MODULES[backend or choose("conv2d", x.device.type)[0].name]


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *given: Any) -> Tensor:
    *options, backend = given
    with torch.autocast(x.device.type, enabled=False):
        return _module(x, backend).forward(x, weight, bias, *options)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    *options, backend = given
    with torch.autocast(x.device.type, enabled=False):  # a backward may run inside one
        return _module(x, backend).backward(dy, x, weight, *options)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *given: Any) -> Tensor:
    stride, padding, dilation, _, _ = given
    return x.new_empty(x.shape[0], *reference.output_sides(x, weight, stride, padding, dilation), weight.shape[0])


def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = given[4]
    return (
        x.new_empty(x.shape if dx else 0),
        weight.new_empty(weight.shape if dweight else 0),
        weight.new_empty(weight.shape[0] if dbias else 0),
    )


forward = define(
    "conv2d",
    f"(Tensor x, Tensor weight, Tensor? bias, {_OPTIONS}, str backend) -> Tensor",
    _forward,
    _forward_fake,
)
backward = define(
    "conv2d_backward",
    f"(Tensor dy, Tensor x, Tensor weight, {_OPTIONS}, bool[] wanted, str backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.options, ctx.backend = inputs
    ctx.save_for_backward(x, weight)


def _run_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    grads = backward(dy, *ctx.saved_tensors, *ctx.options, wanted, ctx.backend)
    return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None, None, None, None


differentiate("conv2d", _run_backward, _setup_context)
vectorize(forward, one_by_one(forward))
vectorize(backward, one_by_one(backward))
