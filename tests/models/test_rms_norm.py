"""The norm of Vim and FastVim by one operator: the numbers of PyTorch's, and when it steps aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from vmamba.models import Vim
from vmamba.models.vim_block import RMSNorm
from vmamba_kernels.rms_norm import compiled

NAME = "vmamba::rms_norm"
needs_kernel = pytest.mark.skipif(bool(compiled.missing("cpu")), reason=compiled.missing("cpu"))


class Called(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def norm() -> RMSNorm:
    torch.manual_seed(0)
    layer = RMSNorm(24, eps=1e-5)
    torch.nn.init.normal_(layer.weight)
    return layer


def plain(layer: RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, (24,), layer.weight.to(x.dtype), layer.eps)


@needs_kernel
def test_every_norm_of_a_network_is_one_operator_in_eager_mode() -> None:
    model = Vim(img_size=8, patch_size=4, depth=2, embed_dim=16, num_classes=3)
    with Called() as called:
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert called.names[NAME] == called.names[f"{NAME}_backward"] == 3


@pytest.mark.parametrize("eps", [1e-5, None])
def test_it_gives_pytorchs_numbers(eps: float | None) -> None:
    layer, found = norm(), []
    layer.eps = eps
    x = torch.randn(2, 5, 24, requires_grad=True)
    dy = torch.randn_like(x)
    for y in (layer(x), plain(layer, x)):
        found.append([y.detach(), *torch.autograd.grad(y, (x, layer.weight), dy)])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


def _dual(layer: RMSNorm, x: Tensor) -> None:
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(y).tangent.abs().max() > 0


def _autocast(layer: RMSNorm, x: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(layer, x))


def _half_weight(layer: RMSNorm, x: Tensor) -> None:
    y = layer.half()(x)
    assert y.dtype is torch.float32 and torch.equal(y, plain(layer, x))


def _exported(layer: RMSNorm, x: Tensor) -> None:
    program = torch.export.export(layer, (x,))
    assert NAME not in str(program) and torch.equal(program.module()(x), plain(layer, x))


def _transformed(layer: RMSNorm, x: Tensor) -> None:
    got = torch.func.grad(lambda t: layer(t).square().sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(got, torch.autograd.grad(plain(layer, leaf).square().sum(), leaf)[0])
    assert torch.equal(torch.func.vmap(layer)(x), plain(layer, x))


ASIDE: dict[str, Callable[[RMSNorm, Tensor], object]] = {
    "autocast": _autocast,
    "export": _exported,
    "a forward derivative": _dual,
    "a transform": _transformed,
    "a half weight": _half_weight,
    "a half type": lambda layer, x: layer.bfloat16()(x.bfloat16()),
    "float64": lambda layer, x: layer.double()(x.double()),
    "a trace": lambda layer, x: torch.jit.trace(layer, (x,), check_trace=False),
    "a device without memory": lambda layer, x: layer.to("meta")(x.to("meta")),
}


@needs_kernel
@pytest.mark.parametrize("what", ASIDE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_steps_aside_for(what: str) -> None:
    layer, x = norm(), torch.randn(2, 5, 24)
    with Called() as called:
        layer(x)
        assert called.names[NAME] == 1
    with Called() as called:
        ASIDE[what](layer, x)
    assert called.names and not called.names[NAME]


def test_a_compiled_graph_keeps_pytorchs_norm() -> None:
    layer, x, targets = norm(), torch.randn(2, 5, 24), []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    compiled_layer = torch.compile(layer, fullgraph=True, backend=keep)
    assert torch.equal(compiled_layer(x), plain(layer, x))
    (target,) = targets
    assert "rms_norm" in target and "vmamba" not in target


def test_hooks_of_its_own_run() -> None:
    layer, seen = norm(), []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer(torch.randn(2, 5, 24, requires_grad=True)).sum().backward()
    assert seen == ["forward", "backward"]


def test_what_does_not_fit_is_pytorchs_error() -> None:
    with pytest.raises(RuntimeError, match="normalized_shape"):
        norm()(torch.randn(2, 5))
