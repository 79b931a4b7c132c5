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

from vmamba.models import VSSM, convolution
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
    assert found["vmamba._convolution.default"] == (1 if design == "vanilla" else 3)
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
    assert graphs[0]["vmamba._convolution.default"] == 2 and len(grads[0]) == len(list(model.parameters()))
    for wanted, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [6, 100])
def test_the_operator_of_a_convolution_keeps_its_contract(channels: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 7, 9, 4), torch.randn(channels, 4, 3, 3), torch.randn(channels)
    options = ([2, 2], [1, 1], [1, 1], 1)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(convolution.forward, (*leaves, *options))
    torch.library.opcheck(
        convolution.forward, (*leaves[:2], None, *options), test_utils=("test_schema", "test_faketensor")
    )
    wanted = torch.conv2d(x.permute(0, 3, 1, 2), weight, bias, 2, 1).permute(0, 2, 3, 1)
    alone = x.as_strided(x.shape, (0, *x.stride()[1:]))  # a batch of one has any stride
    for image in (x, alone):
        torch.testing.assert_close(convolution.forward(image, weight, bias, *options), wanted)


@pytest.mark.parametrize("images", [1, 3])  # at once, of three
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), ((3, 5), (1, 2), (2, 0))])
def test_a_convolution_that_learns_has_torchs_gradients(monkeypatch, images, kernel, stride, padding) -> None:
    torch.manual_seed(0)
    layer = convolution.Conv2d(16, 5, kernel, stride, padding)
    x = torch.randn(3, 16, 9, 12).to(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    monkeypatch.setattr(convolution, "_WINDOWS", images * y[0, 0].numel() * layer.weight[0].numel())
    assert "vmamba__convolution" in y.grad_fn.next_functions[0][0].name()
    dy = torch.randn_like(y)
    parameters = (x, layer.weight, layer.bias)
    double = [p.detach().double().requires_grad_() for p in parameters]
    wanted = torch.conv2d(*double, layer.stride, layer.padding)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
    for got, exact in zip(
        torch.autograd.grad(y, parameters, dy), torch.autograd.grad(wanted, double, dy.double()), strict=True
    ):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    options = (layer.stride, layer.padding, layer.dilation, 1)
    last = [t.detach().permute(0, 2, 3, 1).contiguous() for t in (dy, x)]
    torch.library.opcheck(
        convolution.backward,
        (*last, layer.weight.detach(), *options, True),
        test_utils=("test_schema", "test_faketensor"),
    )
    _, moved = torch.func.jvp(layer, (x.detach(),), (x.detach(),))  # plain operators, which have a forward derivative
    torch.testing.assert_close(moved, torch.conv2d(x, layer.weight, None, layer.stride, layer.padding))
