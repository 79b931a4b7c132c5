"""The registered ops vmamba::bias_gelu and vmamba::bias_gelu_backward: schemas, fake kernels, autograd, backends.

The compiled library knows `vmamba::_bias_gelu_rows` and its backward: dense float32 rows, results written in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import native
from ..backends import Backend, choose, register
from ..registration import define, differentiate, library, one_by_one, vectorize
from . import reference

library.define("_bias_gelu_rows(Tensor x, Tensor bias, Tensor(a!) y) -> ()")
library.define("_bias_gelu_rows_backward(Tensor dy, Tensor x, Tensor bias, Tensor(a!) dx, Tensor(b!) dbias) -> ()")
torch.library.register_fake("vmamba::_bias_gelu_rows", lambda x, bias, y: None, lib=library)
torch.library.register_fake("vmamba::_bias_gelu_rows_backward", lambda dy, x, bias, dx, dbias: None, lib=library)


missing = native.asked_once("_bias_gelu_rows")
register(Backend("bias_gelu", "cpu", devices=("cpu",), missing=lambda: missing("cpu")))
register(Backend("bias_gelu", "reference"))


def backend_for(dtype: torch.dtype, device: str) -> str:
    """The name of the backend for tensors of that type and device; the compiled one knows float32 only."""
    return choose("bias_gelu", device)[0].name if dtype is torch.float32 else "reference"


def _forward(x: Tensor, bias: Tensor, backend: str) -> Tensor:
    if (backend or backend_for(x.dtype, x.device.type)) == "reference":
        return reference.forward(x, bias)
    x = x.contiguous()
    y = torch.empty_like(x)
    torch.ops.vmamba._bias_gelu_rows(x, bias.contiguous(), y)
    return y


def _backward(dy: Tensor, x: Tensor, bias: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if (backend or backend_for(x.dtype, x.device.type)) == "reference":
        return reference.backward(dy, x, bias)
    x, bias = x.contiguous(), bias.contiguous()
    dx, dbias = torch.empty_like(x), torch.empty_like(bias)
    torch.ops.vmamba._bias_gelu_rows_backward(dy.contiguous(), x, bias, dx, dbias)
    return dx, dbias


def _forward_fake(x: Tensor, bias: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _backward_fake(dy: Tensor, x: Tensor, bias: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


forward = define("bias_gelu", "(Tensor x, Tensor bias, str backend) -> Tensor", _forward, _forward_fake)
backward = define(
    "bias_gelu_backward",
    "(Tensor dy, Tensor x, Tensor bias, str backend) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.backend = inputs
    ctx.save_for_backward(x, bias)


def _run_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    return *backward(dy, *ctx.saved_tensors, ctx.backend), None


differentiate("bias_gelu", _run_backward, _setup_context)


def _vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, bias: Tensor, backend: str) -> tuple[Tensor, int]:
    if in_dims[1] is None:
        return forward(x.movedim(in_dims[0] or 0, 0), bias, backend), 0
    pairs = [
        (x if in_dims[0] is None else x.select(in_dims[0], i), bias.select(in_dims[1], i))
        for i in range(info.batch_size)
    ]
    return torch.stack([forward(*pair, backend) for pair in pairs]), 0


vectorize(forward, _vmap)
vectorize(backward, one_by_one(backward))
