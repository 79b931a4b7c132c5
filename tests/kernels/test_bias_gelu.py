"""bias_gelu: parity with float64, gradients, the operator's contract, work in place, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import native
from vmamba_kernels.bias_gelu import bias_gelu, bias_gelu_in_place
from vmamba_kernels.bias_gelu.op import backward, forward, missing

CPU_MISSING = missing("cpu")
CPU = pytest.param("cpu", marks=pytest.mark.skipif(bool(CPU_MISSING), reason=f"bias_gelu on cpu: {CPU_MISSING}"))
BACKENDS = [CPU, "reference"]
SHAPES = [(5,), (1, 1), (3, 7), (5, 8), (2, 3, 17), (1000, 40), (0, 5), (3, 0)]


def case(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """x over the whole range where the function bends, its bias, and a gradient of y."""
    torch.manual_seed(len(shape) + shape[-1])
    return 3 * torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape)


def exact(x: Tensor, bias: Tensor, dy: Tensor) -> list[Tensor]:
    leaves = [t.double().requires_grad_() for t in (x, bias)]
    y = F.gelu(leaves[0] + leaves[1])
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.double())]


def check(ours: list[Tensor], x: Tensor, bias: Tensor, dy: Tensor) -> None:
    for name, got, wanted in zip(("y", "dx", "dbias"), ours, exact(x, bias, dy), strict=True):
        # dbias sums the rows: its error grows with the terms, not with a sum in which they cancel.
        rows = dy.shape[:-1].numel()
        scale = dy.double().abs().reshape(rows, dy.shape[-1]).sum(0) if name == "dbias" else 1 + wanted.abs()
        assert got.shape == wanted.shape, name
        assert (got.double() - wanted).abs().le(1.5e-6 * scale + 1e-30).all(), name


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_kernels_agree_with_float64(shape: tuple[int, ...], isa: str) -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    x, bias, dy = case(shape)
    try:
        with native.use_cpu_isa(isa):
            ours = [forward(x, bias, "cpu"), *backward(dy, x, bias, "cpu")]
    except ValueError as error:
        pytest.skip(str(error))
    check(ours, x, bias, dy)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_agrees_with_float64(shape: tuple[int, ...]) -> None:
    x, bias, dy = case(shape)
    check([forward(x, bias, "reference"), *backward(dy, x, bias, "reference")], x, bias, dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_zero_it_is_the_identity_or_nothing_and_nan_stays(backend: str) -> None:
    x = torch.tensor([[-1e30, -50.0, -8.0, 8.0, 50.0, 1e30, float("nan")]])
    y = bias_gelu(x, torch.zeros(7), backend=backend)[0]
    assert y[:3].abs().max() < 1e-6 and torch.equal(y[3:6], x[0, 3:6]) and y[6].isnan()
    dx, _ = backward(torch.ones_like(x), x, torch.zeros(7), backend)
    assert dx[0, :3].abs().max() < 1e-6 and (dx[0, 3:6] - 1).abs().max() < 1e-6 and dx[0, 6].isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_once(dtype: torch.dtype) -> None:
    x, bias, _ = case((9, 33))
    x, bias = x.to(dtype), bias.to(dtype)
    ours, plain = bias_gelu(x, bias), F.gelu(x + bias)
    wanted = F.gelu(x.double() + bias.double())
    assert ours.dtype is dtype and (ours - wanted).norm() <= 2 * (plain - wanted).norm()


def test_gradcheck_and_no_second_derivative() -> None:
    x, bias, _ = (t.double().requires_grad_() for t in case((4, 5)))
    assert torch.autograd.gradcheck(bias_gelu, (x, bias))
    (dx,) = torch.autograd.grad(bias_gelu(x, bias).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="bias_gelu: second derivatives"):
        dx.sum().backward()


@pytest.mark.parametrize("backend", ["", *BACKENDS])
def test_opcheck(backend: str) -> None:
    x, bias, dy = case((3, 4, 5))
    torch.library.opcheck(forward, (x.transpose(0, 1).requires_grad_(), bias.requires_grad_(), backend))
    torch.library.opcheck(backward, (dy, x.detach(), bias.detach(), backend))


def test_the_same_bits_for_any_number_of_threads() -> None:
    x, bias, dy = case((1000, 200))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = [bias_gelu(x, bias), *backward(dy, x, bias, "")]
        torch.set_num_threads(2)
        two = [bias_gelu(x, bias), *backward(dy, x, bias, "")]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_compile_export_and_vmap() -> None:
    x, bias, _ = case((6, 10))
    wanted = bias_gelu(x, bias)
    compiled = torch.compile(bias_gelu, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x, bias), wanted)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return bias_gelu(x, bias)

    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(Layer(), (x, bias), dynamic_shapes=({0: rows}, None))
    assert torch.equal(exported.module()(x[:4], bias), wanted[:4])
    assert torch.equal(torch.vmap(bias_gelu, (0, None))(x, bias), wanted)
    biases = torch.stack([bias, 2 * bias])
    both = torch.stack([wanted, bias_gelu(x, 2 * bias)])
    assert torch.equal(torch.vmap(bias_gelu, (None, 0))(x, biases), both)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_over_a_gradient(backend: str) -> None:
    x, bias, dy = case((4, 3, 7))
    leaves = (x.requires_grad_(), bias.requires_grad_())
    y = bias_gelu(*leaves, backend=backend)
    several = torch.stack([dy, 2 * dy, dy.flip(0)])
    mapped = torch.autograd.grad(y, leaves, several, retain_graph=True, is_grads_batched=True)
    for i, each in enumerate(several):
        for got, wanted in zip(mapped, torch.autograd.grad(y, leaves, each, retain_graph=True), strict=True):
            assert torch.equal(got[i], wanted)


def test_in_place_writes_where_it_reads() -> None:
    x, bias, _ = case((7, 9))
    wanted, given = bias_gelu(x, bias), x.clone()
    assert bias_gelu_in_place(given, bias) is given and torch.equal(given, wanted)
    strided = torch.stack([x, x], 2)[..., 1]
    assert torch.equal(bias_gelu_in_place(strided, bias), wanted)
    with pytest.raises(ValueError, match="wanted for a gradient"):
        bias_gelu_in_place(x.requires_grad_(), bias)


@pytest.mark.parametrize(
    "x, bias, options, words",
    [
        (torch.zeros(2, 3), torch.zeros(4), {}, ["bias", "(4,)", "(2, 3)"]),
        (torch.zeros(2, 3), torch.zeros(2, 3), {}, ["bias", "(2, 3)"]),
        (torch.zeros(2, 3), torch.zeros(3).half(), {}, ["bias", "float16", "float32"]),
        (torch.zeros(2, 3).long(), torch.zeros(3).long(), {}, ["bias", "int64"]),
        (torch.zeros(2, 3), torch.zeros(3, device="meta"), {}, ["bias", "meta", "cpu"]),
        (torch.zeros(2, 3), torch.zeros(3), {"backend": "gpu"}, ["backend", "gpu"]),
    ],
)
def test_bad_input_is_one_line(x: Tensor, bias: Tensor, options: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        bias_gelu(x, bias, **options)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
