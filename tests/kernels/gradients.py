"""What a function of tensors gives, and its gradients, for the tests that compare two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def results(function: Callable[..., Tensor], tensors: Sequence[Tensor], dy: Tensor) -> list[Tensor]:
    """y of `function(*tensors)`, and the gradient of each tensor for the gradient dy of y."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def assert_exact(ours: Sequence[Tensor], wanted: Sequence[Tensor], names: Sequence[str], tolerance: float) -> None:
    """Compare results with those in float64 by norm, naming the tensor that differs; there may be more names."""
    assert len(ours) == len(wanted) <= len(names)
    for name, got, exact in zip(names, ours, wanted, strict=False):
        assert got.shape == exact.shape and got.isfinite().all(), name
        assert (got.double() - exact).norm() <= tolerance * exact.norm(), name
