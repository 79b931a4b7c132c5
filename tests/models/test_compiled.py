"""What a graph of torch.compile is made of: our operators, and no convolution for which inductor turns every map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from vmamba.models import VSSM, FastVim
from vmamba.models.convolution import Conv2d
from vmamba_kernels.depthwise_silu import fuses as fuses_convolution
from vmamba_kernels.mlp import fuses as fuses_mlp
from vmamba_kernels.ss2d import fuses as fuses_scan

NANO: dict[str, Any] = dict(depths=(1, 1), dims=8, num_classes=5, ssm_d_state=1, drop_path_rate=0.0)
DESIGNS: dict[str, dict[str, Any]] = {
    "channel first": dict(norm_layer="ln2d", downsample_version="v3", patchembed_version="v2"),
    "vanilla": dict(forward_type="v0", ssm_d_state=4, mlp_ratio=0.0, downsample_version="v1"),
}
needs_kernels = pytest.mark.skipif(
    not all(fuses(torch.float32, "cpu") for fuses in (fuses_mlp, fuses_scan))
    or not fuses_convolution(torch.float32, 3, "cpu"),
    reason="the compiled library is absent",
)


def recorded(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], list[Counter[str]]]:
    """`model`, compiled into graphs that run as they are, and the operators of each graph, counted."""
    graphs: list[Counter[str]] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function"))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=keep)), graphs


@needs_kernels
@pytest.mark.parametrize("design", DESIGNS)
def test_a_graph_for_inference_calls_our_operators_and_no_convolution(design: str) -> None:
    torch.manual_seed(0)
    model = VSSM(**{**NANO, **DESIGNS[design]}).eval()
    compiled, graphs = recorded(model)
    x = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    (found,) = graphs
    assert found["vmamba.ss2d.default"] == found["vmamba.depthwise_silu.default"] == 2
    assert found["vmamba.mlp.default"] == (0 if design == "vanilla" else 2)
    assert found["vmamba.conv2d.default"] == (1 if design == "vanilla" else 3)
    assert found["aten.convolution.default"] == 0


def test_a_graph_with_gradients_has_those_of_the_model() -> None:
    torch.manual_seed(0)
    model = VSSM(**{**NANO, **DESIGNS["channel first"], "depths": (1,)})
    compiled, graphs = recorded(model)
    x = torch.randn(2, 3, 36, 36)
    grads = []
    for function in (model, compiled):
        model.zero_grad()
        function(x).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert graphs[0]["vmamba.conv2d.default"] == 2 and len(grads[0]) == len(list(model.parameters()))
    for wanted, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_a_convolution_that_learns_calls_the_operator_and_has_torchs_gradients() -> None:
    torch.manual_seed(0)
    layer = Conv2d(16, 5, (3, 5), (1, 2), (2, 0))
    x = torch.randn(3, 16, 9, 12).to(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    assert "vmamba_conv2d" in y.grad_fn.next_functions[0][0].name()
    dy = torch.randn_like(y)
    parameters = (x, layer.weight, layer.bias)
    wanted = torch.conv2d(*parameters, layer.stride, layer.padding)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    for got, exact in zip(*(torch.autograd.grad(out, parameters, dy) for out in (y, wanted)), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)
    _, moved = torch.func.jvp(layer, (x.detach(),), (x.detach(),))  # plain operators, which have a forward derivative
    torch.testing.assert_close(moved, torch.conv2d(x, layer.weight, None, layer.stride, layer.padding))


def test_a_graph_of_frozen_convolutions_takes_no_gradient_of_their_weights() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(Conv2d(16, 16, 3, padding=1), Conv2d(16, 4, 2)).requires_grad_(False)
    wanted: list[Any] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls = [node for node in graph.graph.nodes if node.target is torch.ops.vmamba.conv2d_backward.default]
        wanted.extend(node.args[-2] for node in calls)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    compiled = torch.compile(layers, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    x = torch.randn(2, 16, 6, 7, requires_grad=True)
    (dx,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (exact,) = torch.autograd.grad(layers(x).square().sum(), x)
    torch.testing.assert_close(dx, exact, rtol=1e-4, atol=1e-4)
    assert wanted == [[True, False, False]] * 2


def test_a_graph_of_training_runs_each_pooled_scan_once() -> None:
    torch.manual_seed(0)
    model = FastVim(img_size=32, patch_size=8, depth=2, embed_dim=16, d_state=4, num_classes=3)
    compiled, graphs = recorded(model)
    x = torch.randn(2, 3, 32, 32)
    for function in (model, compiled):
        model.zero_grad()
        function(x).square().sum().backward()
    forward, backward = graphs
    assert forward["vmamba.pooled_scan.default"] == backward["vmamba.pooled_scan_backward.default"] == 2
    assert backward["vmamba.pooled_scan.default"] == 0
