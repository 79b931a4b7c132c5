"""The registered ops of the causal convolution: schemas, fake kernels, autograd, vmap, and the choice of a backend.

`vmamba::causal_conv1d` carries the name of the backend ("" chooses by device); its backward is
`vmamba::causal_conv1d_backward`. Both take weight [G, C, W] and bias [G, C] in float32 (float64 for float64 input).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, vectorize
from ..selective_scan.layout import empty_sequence
from ..triton_support import triton_backend
from . import compiled
from .batching import vmap_rule
from .layout import empty_output

_INPUTS = "Tensor x, Tensor weight, Tensor? bias, int[] reverse, bool silu, bool flip_output, str backend"
_MODULES = {"cpu": "compiled", "cuda": "compiled", "triton": "triton", "reference": "reference"}


def _module(x: Tensor, backend: str) -> Any:
    """The module that computes; float64 is for the reference alone. Triton's is imported when it is first used."""
    if not backend:
        backend = "reference" if x.dtype is torch.float64 else choose("causal_conv1d", x.device.type)[0].name
    return import_module(f"{__package__}.{_MODULES[backend]}")


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: list[int],
    silu: bool,
    flip_output: bool,
    backend: str,
) -> Tensor:
    return _module(x, backend).forward(x, weight, bias, reverse, silu, flip_output)


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: list[int],
    silu: bool,
    flip_output: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _module(x, backend).backward(dy, x, weight, bias, reverse, silu, flip_output)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: list[int],
    silu: bool,
    flip_output: bool,
    backend: str,
) -> Tensor:
    return empty_output(x, weight.shape[0] * weight.shape[1])


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: list[int],
    silu: bool,
    flip_output: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty((0,) if bias is None else bias.shape)
    return empty_sequence(x, x.dtype), weight.new_empty(weight.shape), dbias


forward = define("causal_conv1d", f"({_INPUTS}) -> Tensor", _forward, _forward_fake)
backward = define(
    "causal_conv1d_backward", f"(Tensor dy, {_INPUTS}) -> (Tensor, Tensor, Tensor)", _backward, _backward_fake
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def _run_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors
    dx, dweight, dbias = backward(dy, *inputs, *ctx.options)
    return dx, dweight, None if inputs[2] is None else dbias, None, None, None, None


differentiate("causal_conv1d", _run_backward, _setup_context)
vectorize(forward, vmap_rule(forward, False))
vectorize(backward, vmap_rule(backward, True))

register(Backend("causal_conv1d", "cpu", devices=("cpu",), missing=lambda: compiled.missing("cpu")))
register(Backend("causal_conv1d", "cuda", devices=("cuda",), missing=lambda: compiled.missing("cuda")))
register(triton_backend("causal_conv1d"))
register(Backend("causal_conv1d", "reference"))
