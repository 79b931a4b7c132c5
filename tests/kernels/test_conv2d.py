"""conv2d: parity with float64, gradients that are asked for and no others, the operator's contract, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vmamba_kernels import conv2d
from vmamba_kernels.conv2d import products
from vmamba_kernels.conv2d.op import backward, forward

from .gradients import assert_exact, results

BACKENDS = ["pytorch", "reference"]
NAMES = ("y", "dx", "dweight", "dbias")
# x [B, H, W, C], weight [O, C / groups, m, n], and the options: windows gathered, a map that is small for its weight,
# groups, dilation, padding wider than the kernel reaches, an image as large as the kernel, no image.
CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((3, 9, 12, 16), (5, 16, 3, 3), dict(stride=2, padding=1)),
    ((3, 9, 12, 16), (5, 16, 3, 5), dict(stride=(1, 2), padding=(2, 0))),
    ((1, 7, 9, 4), (100, 4, 3, 3), dict(stride=(2, 3), padding=(1, 0))),
    ((2, 8, 6, 6), (4, 3, 2, 3), dict(groups=2)),
    ((2, 8, 9, 16), (3, 16, 3, 2), dict(dilation=(2, 3))),
    ((2, 2, 3, 3), (2, 3, 1, 1), dict(stride=3, padding=2)),
    ((2, 2, 2, 17), (6, 17, 2, 2), {}),
    ((0, 4, 4, 16), (3, 16, 2, 2), {}),
]


def case(x: tuple[int, ...], weight: tuple[int, ...], bias: bool = True) -> list[Tensor]:
    torch.manual_seed(sum(x))
    return [torch.randn(x), torch.randn(weight), *([torch.randn(weight[0])] if bias else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x, weight, options", CASES)
def test_every_backend_agrees_with_float64(monkeypatch, x, weight, options, bias: bool, backend: str) -> None:
    def plain(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.conv2d(x.permute(0, 3, 1, 2), *weights, **options).permute(0, 2, 3, 1)

    tensors = case(x, weight, bias)
    exact_tensors = [t.double() for t in tensors]
    dy = torch.randn(plain(*tensors).shape)
    wanted = results(plain, exact_tensors, dy.double())
    one_image = dy[:1, ..., 0].numel() * tensors[1][0].numel()
    for windows in (products.WINDOWS, max(one_image, 1)):
        monkeypatch.setattr(products, "WINDOWS", windows)
        ours = results(lambda *t: conv2d(*t, **options, backend=backend), tensors, dy)
        assert all(got.dtype is torch.float32 and got.is_contiguous() for got in ours)
        assert_exact(ours, wanted, NAMES, 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_half_types(backend: str) -> None:
    x, weight, bias = case((1, 6, 7, 16), (4, 16, 3, 3))
    wanted = conv2d(x.double(), weight.double(), bias.double(), padding=1).float()
    for image in (x.transpose(1, 2).contiguous().transpose(1, 2), x.as_strided(x.shape, (0, *x.stride()[1:]))):
        torch.testing.assert_close(
            conv2d(image, weight, bias, padding=1, backend=backend), wanted, rtol=1e-5, atol=1e-5
        )
    half = [t.bfloat16() for t in (x, weight, bias)]
    exact = conv2d(*(t.double() for t in half), padding=1)
    ours, theirs = (conv2d(*half, padding=1, backend=name) for name in (backend, "reference"))
    assert ours.dtype is torch.bfloat16 and (ours - exact).norm() <= 2 * (theirs - exact).norm()


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_gradient_that_no_one_asks_for_is_not_computed(frozen: int) -> None:
    tensors = [t.requires_grad_(i != frozen) for i, t in enumerate(case((2, 5, 6, 16), (4, 16, 3, 3)))]
    y, wanted = conv2d(*tensors), [i != frozen for i in range(3)]
    with torch.profiler.profile() as profile:
        grads = torch.autograd.grad(y.sum(), [t for t in tensors if t.requires_grad])
    # the product that the gradient of a weight is, and PyTorch's convolution for that of an image
    names = {event.name for event in profile.events()}
    assert ("aten::addmm_" in names) == wanted[1] and ("aten::convolution_backward" in names) == wanted[0]
    every = results(conv2d, [t.detach() for t in tensors], torch.ones_like(y))[1:]
    for backend in BACKENDS:
        options = ([1, 1], [0, 0], [1, 1], 1, wanted, backend)
        found = backward(torch.ones_like(y), tensors[0].detach(), tensors[1].detach(), *options)
        assert [grad.numel() > 0 for grad in found] == wanted
        asked = [(a, b) for a, b, want in zip(found, every, wanted, strict=True) if want]
        for (got, exact), grad in zip(asked, grads, strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(grad, exact, rtol=1e-4, atol=1e-4)


def test_gradcheck_and_no_second_derivative() -> None:
    tensors = [t.double().requires_grad_() for t in case((2, 3, 4, 2), (2, 1, 2, 2))]
    assert torch.autograd.gradcheck(lambda *t: conv2d(*t, stride=2, padding=1, groups=2), tuple(tensors))
    (dx,) = torch.autograd.grad(conv2d(*tensors, groups=2).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="conv2d: second derivatives"):
        dx.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("features", [6, 100])  # the latter are many for so small a map
def test_opcheck(backend: str, features: int) -> None:
    x, weight, bias = case((1, 7, 9, 16), (features, 16, 3, 3))
    options = ([2, 2], [1, 1], [1, 1], 1)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(forward, (*leaves, *options, backend))
    brief = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, (*leaves[:2], None, *options, backend), test_utils=brief)
    dy = torch.randn(1, 4, 5, features)
    for wanted in ([True, True, True], [True, False, True], [False, True, False]):
        torch.library.opcheck(backward, (dy, x, weight, *options, wanted, backend), test_utils=brief)


class Layer(torch.nn.Module):
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv2d(x, weight, bias, 2, 1)


def test_compile_export_and_vmap() -> None:
    tensors = case((2, 5, 6, 16), (4, 16, 3, 3))
    dy = torch.randn(2, 3, 4, 4)
    compiled = torch.compile(conv2d, fullgraph=True, dynamic=True, backend="aot_eager")
    for got, eager in zip(results(compiled, tensors, dy), results(conv2d, tensors, dy), strict=True):
        assert torch.equal(got, eager)
    x, *weights = tensors
    sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(Layer(), (x, *weights), dynamic_shapes=(sizes, None, None)).module()
    other = torch.randn(4, 8, 7, 16)
    assert torch.equal(exported(other, *weights), conv2d(other, *weights, 2, 1))
    mapped = torch.vmap(conv2d, (0, None, None))(torch.stack([x, 2 * x]), *weights)
    assert torch.equal(mapped, torch.stack([conv2d(x, *weights), conv2d(2 * x, *weights)]))


def test_the_operator_knows_no_other_backend() -> None:
    with pytest.raises(KeyError, match="gpu"):
        forward(*case((1, 3, 3, 4), (6, 4, 2, 2)), [1, 1], [0, 0], [1, 1], 1, "gpu")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"x": torch.zeros(2, 3, 4)}, ["x", "[B, H, W, C]", "(2, 3, 4)"]),
        ({"weight": torch.zeros(6, 3, 2, 2)}, ["weight", "[O, C / 2, m, n]", "(6, 3, 2, 2)", "(1, 3, 3, 4)"]),
        ({"weight": torch.zeros(5, 2, 2, 2)}, ["weight", "multiple of 2", "(5, 2, 2, 2)"]),
        ({"weight": torch.zeros(6, 2, 2, 6)}, ["weight", "(6, 2, 2, 6)", "padded", "(1, 3, 3, 4)"]),
        ({"bias": torch.zeros(3)}, ["bias", "(3,)", "[6]"]),
        ({"bias": torch.zeros(6).half()}, ["bias", "float16", "float32"]),
        ({"x": torch.zeros(1, 3, 3, 4).long()}, ["floating", "int64"]),
        ({"weight": torch.zeros(6, 2, 2, 2, device="meta")}, ["weight", "meta", "cpu"]),
        ({"groups": 3}, ["groups", "3", "(1, 3, 3, 4)"]),
        ({"stride": 0}, ["stride", "0"]),
        ({"padding": (1, 2, 3)}, ["padding", "(1, 2, 3)"]),
        ({"padding": [1]}, ["padding", "[1]"]),
        ({"padding": "same"}, ["padding", "'same'"]),
        ({"dilation": (1,)}, ["dilation", "(1,)"]),
        ({"stride": 1.5}, ["stride", "1.5"]),
        ({"stride": (1.5, 2)}, ["stride", "(1.5, 2)"]),
        ({"groups": 2.0}, ["groups", "2.0"]),
        ({"x": torch.zeros(1, 0, 3, 4)}, ["x: ", "(1, 0, 3, 4)"]),
        ({"x": torch.zeros(1, 3, 0, 4)}, ["x: ", "(1, 3, 0, 4)"]),
        ({"x": torch.zeros(1, 3, 3, 0), "weight": torch.zeros(6, 0, 2, 2)}, ["x: ", "(1, 3, 3, 0)"]),
        ({"weight": torch.zeros(0, 2, 2, 2), "bias": torch.zeros(0)}, ["weight: ", "(0, 2, 2, 2)"]),
        ({"weight": torch.zeros(6, 2, 0, 2)}, ["weight: ", "(6, 2, 0, 2)"]),
        ({"weight": torch.zeros(6, 2, 2, 0)}, ["weight: ", "(6, 2, 2, 0)"]),
        ({"backend": "gpu"}, ["backend", "gpu"]),
    ],
)
def test_bad_input_is_one_line(changed: dict[str, Any], words: list[str]) -> None:
    given = {"x": torch.zeros(1, 3, 3, 4), "weight": torch.zeros(6, 2, 2, 2), "bias": torch.zeros(6), "padding": 1}
    with pytest.raises(ValueError) as caught:
        conv2d(**({**given, "groups": 2} | changed))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
