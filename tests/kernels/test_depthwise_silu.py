"""depthwise_silu: parity with float64 in every instruction set, gradients, the operator's contract, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import native
from vmamba_kernels.depthwise_silu import compiled, depthwise_silu
from vmamba_kernels.depthwise_silu.op import backward, forward

from .gradients import assert_exact, results

CPU_MISSING = compiled.missing("cpu")
CPU = pytest.param("cpu", marks=pytest.mark.skipif(bool(CPU_MISSING), reason=f"depthwise_silu: {CPU_MISSING}"))
BACKENDS = [CPU, "reference"]
NAMES = ("y", "dx", "dweight", "dbias")
# Images smaller than the kernel, parts of vectors, more channels than a block, more rows than a task, no image.
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (1, 1, 6, 8), (2, 5, 4, 16), (1, 9, 7, 37), (17, 3, 5, 100), (0, 3, 3, 4)]


def case(shape: tuple[int, ...], kernel: int = 3, bias: bool = True) -> tuple[list[Tensor], Tensor]:
    """The arguments, and a gradient of y."""
    torch.manual_seed(sum(shape))
    tensors = [torch.randn(shape), torch.randn(shape[3], 1, kernel, kernel)]
    return [*tensors, torch.randn(shape[3])] if bias else tensors, torch.randn(shape)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    padding, channels = weight.shape[2] // 2, len(weight)
    return F.silu(F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=channels)).permute(0, 2, 3, 1)


def check(ours: list[Tensor], tensors: list[Tensor], dy: Tensor) -> None:
    assert_exact(ours, results(plain, [t.double() for t in tensors], dy.double()), NAMES, 2e-6)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_compiled_backend_agrees_with_float64(shape: tuple[int, ...], bias: bool, isa: str) -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    tensors, dy = case(shape, bias=bias)
    try:
        with native.use_cpu_isa(isa):
            check(results(lambda *t: depthwise_silu(*t, backend="cpu"), tensors, dy), tensors, dy)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("shape, kernel", [((2, 3, 1, 5), 3), ((1, 4, 6, 3), 5), ((2, 2, 3, 4), 1), ((0, 3, 3, 4), 3)])
def test_the_reference_agrees_with_float64(shape: tuple[int, ...], kernel: int) -> None:
    tensors, dy = case(shape, kernel)
    check(results(lambda *t: depthwise_silu(*t, backend="reference"), tensors, dy), tensors, dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_zero_it_is_the_identity_or_nothing_and_what_is_not_a_number_stays_where_it_is(backend: str) -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4] = torch.tensor([-1e30, -300.0, -90.0, -20.0, 20.0, 90.0, 300.0, 1e30, float("nan")])
    x.requires_grad_()
    weight = torch.zeros(9, 1, 3, 3)
    weight[:, :, 1] = 1.0  # reads the positions on both sides
    y = depthwise_silu(x, weight, backend=backend)
    (dx,) = torch.autograd.grad(y.sum(), x)
    wanted = torch.tensor([0.0, 0.0, 0.0, 0.0, 20.0, 90.0, 300.0, 1e30])
    torch.testing.assert_close(y[0, 0, 3:6, :8], wanted.expand(3, 8), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dx[0, 0, 4, :8], 3 * (wanted > 0).float(), rtol=1e-6, atol=1e-6)
    assert y[0, 0, 3:6, 8].isnan().all() and not y[0, 0, [2, 6]].isnan().any() and not dx[..., :8].isnan().any()


def test_the_same_bits_for_any_number_of_threads_and_any_memory() -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    tensors, dy = case((3, 20, 11, 70))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs = [torch.full_like(t, torch.nan) for t in (tensors[0], *tensors)]
            torch.ops.vmamba._depthwise_silu_rows(*tensors, outputs[0])
            torch.ops.vmamba._depthwise_silu_rows_backward(dy, *tensors, *outputs[1:])
            found.append(outputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    check(found[0], tensors, dy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_once(dtype: torch.dtype) -> None:
    tensors = [t.to(dtype) for t in case((2, 5, 6, 7))[0]]
    ours, layers, wanted = depthwise_silu(*tensors), plain(*tensors), plain(*(t.double() for t in tensors))
    assert ours.dtype is dtype and (ours - wanted).norm() <= 2 * (layers - wanted).norm()


def test_gradcheck_and_no_second_derivative() -> None:
    tensors = [t.double().requires_grad_() for t in case((2, 3, 2, 2))[0]]
    assert torch.autograd.gradcheck(depthwise_silu, tuple(tensors))
    (dx,) = torch.autograd.grad(depthwise_silu(*tensors).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="depthwise_silu: second derivatives"):
        dx.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    (x, weight, bias), dy = case((2, 3, 3, 5))
    x = x.transpose(1, 2)
    torch.library.opcheck(forward, (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), backend))
    torch.library.opcheck(backward, (dy.transpose(1, 2), x.detach(), weight.detach(), None, backend))


def test_compile_and_vmap() -> None:
    tensors, dy = case((2, 5, 4, 6))
    compiled_function = torch.compile(depthwise_silu, fullgraph=True, dynamic=True, backend="aot_eager")
    for got, eager in zip(results(compiled_function, tensors, dy), results(depthwise_silu, tensors, dy), strict=True):
        assert torch.equal(got, eager)
    x, *weights = tensors
    mapped = torch.vmap(depthwise_silu, (0, None, None))(torch.stack([x, 2 * x]), *weights)
    assert torch.equal(mapped, torch.stack([depthwise_silu(x, *weights), depthwise_silu(2 * x, *weights)]))
    leaves = [t.requires_grad_() for t in tensors]
    y = depthwise_silu(*leaves)
    several = torch.autograd.grad(y, leaves, torch.stack([dy, 2 * dy]), retain_graph=True, is_grads_batched=True)
    for got, wanted in zip(several, torch.autograd.grad(y, leaves, 2 * dy), strict=True):
        torch.testing.assert_close(got[1], wanted)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"x": torch.zeros(2, 3, 4)}, ["x", "[B, H, W, C]", "(2, 3, 4)"]),
        ({"weight": torch.zeros(4, 1, 3, 5)}, ["weight", "(4, 1, 3, 5)", "(1, 2, 3, 4)"]),
        ({"weight": torch.zeros(4, 1, 2, 2)}, ["weight", "odd", "(4, 1, 2, 2)"]),
        ({"weight": torch.zeros(4, 3, 3)}, ["weight", "(4, 3, 3)"]),
        ({"bias": torch.zeros(3)}, ["bias", "(3,)", "[4]"]),
        ({"bias": torch.zeros(4).half()}, ["bias", "float16", "float32"]),
        ({"x": torch.zeros(1, 2, 3, 4).long()}, ["floating", "int64"]),
        ({"weight": torch.zeros(4, 1, 3, 3, device="meta")}, ["weight", "meta", "cpu"]),
        ({"backend": "gpu"}, ["backend", "gpu"]),
    ],
)
def test_bad_input_is_one_line(changed: dict, words: list[str]) -> None:
    given = {"x": torch.zeros(1, 2, 3, 4), "weight": torch.zeros(4, 1, 3, 3), "bias": torch.zeros(4)}
    with pytest.raises(ValueError) as caught:
        depthwise_silu(**(given | changed))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_what_the_compiled_backend_does_not_know_is_refused_by_name() -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    (x, weight, bias), _ = case((1, 4, 4, 2), kernel=5)
    with pytest.raises(ValueError, match=r"weight \(2, 1, 5, 5\) runs on backend 'reference' only"):
        depthwise_silu(x, weight, bias, backend="cpu")
    with pytest.raises(ValueError, match="float64"):
        depthwise_silu(x.double(), weight.double(), backend="cpu")
