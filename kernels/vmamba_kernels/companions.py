"""The check of the tensors that go with x in operators whose tensors share one type and one device."""

from __future__ import annotations

from torch import Tensor


def check_companions(x: Tensor, **companions: Tensor | None) -> None:
    """Raise the ValueError that names the first of the weights and biases whose type or device is not x's."""
    for name, tensor in companions.items():
        if tensor is None:
            continue
        if not x.is_floating_point() or tensor.dtype is not x.dtype:
            raise ValueError(f"{name}: expected x's floating type, got {tensor.dtype} for x {x.dtype} {tuple(x.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: is on {tensor.device}, and x {tuple(x.shape)} on {x.device}")
