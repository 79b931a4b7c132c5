"""Checks that operators share: of the tensors that go with x, and of derivatives that no operator has."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import forward_ad

from .backends import transformed


def check_companions(x: Tensor, **companions: Tensor | None) -> None:
    """Raise the ValueError that names the first of the weights and biases whose type or device is not x's."""
    for name, tensor in companions.items():
        if tensor is None:
            continue
        if not x.is_floating_point() or tensor.dtype is not x.dtype:
            raise ValueError(f"{name}: expected x's floating type, got {tensor.dtype} for x {x.dtype} {tuple(x.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: is on {tensor.device}, and x {tuple(x.shape)} on {x.device}")


def refuse_tangents(operator: str, *inputs: Any) -> None:
    """Raise RuntimeError if an input carries a forward-mode derivative, which the operator would silently lose."""
    if transformed() and any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        raise RuntimeError(f"{operator}: forward-mode derivatives are not implemented; take gradients backward")
