"""The registered ops vmamba::rms_norm and vmamba::rms_norm_backward: schemas, fake kernels, autograd, vmap, backends.

No operator of either backend is one that autocast would run in another type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, one_by_one, vectorize
from . import compiled, reference

_INPUTS = "Tensor x, Tensor weight, float eps, str backend"

register(Backend("rms_norm", "cpu", devices=("cpu",), missing=lambda: compiled.missing("cpu")))
register(Backend("rms_norm", "reference"))


def backend_for(dtype: torch.dtype, device: str) -> str:
    """The name of the backend for tensors of that type and device; the compiled one knows float32 only."""
    return choose("rms_norm", device)[0].name if dtype is torch.float32 else "reference"


def _module(x: Tensor, backend: str) -> Any:
    return reference if (backend or backend_for(x.dtype, x.device.type)) == "reference" else compiled


def _forward(x: Tensor, weight: Tensor, eps: float, backend: str) -> Tensor:
    return _module(x, backend).forward(x, weight, eps)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    return _module(x, backend).backward(dy, x, weight, eps)


def _forward_fake(x: Tensor, weight: Tensor, eps: float, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


forward = define("rms_norm", f"({_INPUTS}) -> Tensor", _forward, _forward_fake)
backward = define("rms_norm_backward", f"(Tensor dy, {_INPUTS}) -> (Tensor, Tensor)", _backward, _backward_fake)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _run_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    return *backward(dy, *ctx.saved_tensors, ctx.eps, ctx.backend), None, None


differentiate("rms_norm", _run_backward, _setup_context)
vectorize(forward, one_by_one(forward))
vectorize(backward, one_by_one(backward))
