"""Forward-mode derivatives: layers step aside for them, and operators, which have none, say so."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from vmamba.models.convolution import Conv2d
from vmamba.models.layers import Mlp
from vmamba.models.vim_block import RMSNorm
from vmamba.selfcheck import CASES


def of_transform(layer: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    return torch.func.jvp(layer, (x,), (v,))[1]


def of_graph(layer: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    return torch.compile(lambda x, v: of_transform(layer, x, v), backend="aot_eager")(x, v)


def of_level(layer: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v))).tangent


@pytest.mark.parametrize("derivative", [of_transform, of_graph, of_level])
@pytest.mark.parametrize(
    "make, shape",
    [(lambda: Mlp(8, 16), (3, 8)), (lambda: RMSNorm(8), (3, 8)), (lambda: Conv2d(16, 4, 3), (2, 16, 6, 5))],
    ids=["mlp", "rms_norm", "conv2d"],
)
def test_layers_have_forward_derivatives(
    derivative: Callable[..., Tensor], make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer, x, v = make(), torch.randn(shape), torch.randn(shape)
    exact = deepcopy(layer).double()
    with torch.no_grad():
        wanted = (exact(x.double() + 1e-5 * v) - exact(x.double() - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(derivative(layer, x, v).double(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.func.grad(lambda x: layer(x).sum())(x).abs().sum() > 0


@pytest.mark.parametrize("derivative", [of_transform, of_level])
@pytest.mark.parametrize("operator", sorted(CASES))
def test_operators_refuse_forward_derivatives(operator: str, derivative: Callable[..., Tensor]) -> None:
    make, call = CASES[operator]
    tensors = make()
    name, first = next(iter(tensors.items()))
    message = f"{operator}: forward-mode derivatives are not implemented"
    with pytest.raises(RuntimeError, match=message):
        derivative(lambda x: call({**tensors, name: x}, None), first, torch.ones_like(first))
    with forward_ad.dual_level():
        assert call(tensors, None).isfinite().all()


@pytest.mark.parametrize("operator", sorted(set(CASES) - {"cross_scan"}))
def test_operators_refuse_gradients_of_torch_func(operator: str) -> None:
    make, call = CASES[operator]
    tensors = make()
    name, first = next(iter(tensors.items()))
    with pytest.raises(RuntimeError, match="torch.func's gradients are not implemented; take torch.autograd's"):
        torch.func.grad(lambda x: call({**tensors, name: x}, None).sum())(first)
