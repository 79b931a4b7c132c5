"""The registered ops vmamba::mlp and vmamba::mlp_backward: schemas, fake kernels, autograd, vmap, backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..registration import define, differentiate, one_by_one, vectorize
from . import compiled, reference

_WEIGHTS = "Tensor weight1, Tensor bias1, Tensor weight2"

register(Backend("mlp", "cpu", devices=("cpu",), missing=lambda: compiled.missing("cpu")))
register(Backend("mlp", "reference"))


def backend_for(dtype: torch.dtype, device: str) -> str:
    """The name of the backend for tensors of that type and device; the compiled one knows float32 only."""
    return choose("mlp", device)[0].name if dtype is torch.float32 else "reference"


def _module(x: Tensor, backend: str) -> Any:
    return reference if (backend or backend_for(x.dtype, x.device.type)) == "reference" else compiled


def _forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, keep_hidden: bool, backend: str
) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return _module(x, backend).forward(x, weight1, bias1, weight2, bias2, keep_hidden)


def _backward(
    dy: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    hidden: Tensor,
    wanted: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):  # a backward may run inside one
        return _module(x, backend).backward(dy, x, weight1, bias1, weight2, hidden, wanted)


def _forward_fake(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, keep_hidden: bool, backend: str
) -> tuple[Tensor, Tensor]:
    features = weight1.shape[0]
    hidden = x.new_empty((*x.shape[:-1], features) if keep_hidden else (0, features))
    return x.new_empty((*x.shape[:-1], weight2.shape[0])), hidden


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    hidden: Tensor,
    wanted: Sequence[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    shapes = (x.shape, weight1.shape, bias1.shape, weight2.shape, weight2.shape[:1])
    return tuple(x.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True))


forward = define(
    "mlp",
    f"(Tensor x, {_WEIGHTS}, Tensor bias2, bool keep_hidden, str backend) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
backward = define(
    "mlp_backward",
    f"(Tensor dy, Tensor x, {_WEIGHTS}, Tensor hidden, bool[] wanted, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.kept, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _run_backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *tensors, bias2, hidden = ctx.saved_tensors
    if dy is None:
        return (None,) * 7
    if not ctx.kept:
        hidden = forward(*tensors, bias2, True, ctx.backend)[1]
    wanted = list(ctx.needs_input_grad[:5])
    grads = backward(dy, *tensors, hidden, wanted, ctx.backend)
    return *(grad if want else None for grad, want in zip(grads, wanted, strict=True)), None, None


differentiate("mlp", _run_backward, _setup_context)
vectorize(forward, one_by_one(forward))
vectorize(backward, one_by_one(backward))
