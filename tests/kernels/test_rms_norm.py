"""rms_norm: parity with float64 in every instruction set, gradients, the operator's contract, bad input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import native
from vmamba_kernels.rms_norm import compiled, rms_norm
from vmamba_kernels.rms_norm.op import backward, forward

from .gradients import assert_exact, results

CPU_MISSING = compiled.missing("cpu")
CPU = pytest.param("cpu", marks=pytest.mark.skipif(bool(CPU_MISSING), reason=f"rms_norm: {CPU_MISSING}"))
BACKENDS = [CPU, "reference"]
NAMES = ("y", "dx", "dweight")
EPS = 0.1  # so large that the gradient of a single number does not cancel
# One number, parts of vectors, vectors beyond the partial sums, more rows than a task, long rows, no row, no channel.
SHAPES = [(1,), (7,), (2, 3, 5), (3, 64), (2, 5, 192), (1100, 33), (3, 20001), (0, 5), (3, 0)]


def case(shape: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """The arguments, and a gradient of y."""
    torch.manual_seed(sum(shape))
    return [torch.randn(shape), torch.randn(shape[-1])], torch.randn(shape)


def plain(x: Tensor, weight: Tensor, eps: float | None = EPS) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def normed(backend: str | None = None) -> partial[Tensor]:
    return partial(rms_norm, eps=EPS, backend=backend)


def check(ours: list[Tensor], tensors: list[Tensor], dy: Tensor) -> None:
    assert_exact(ours, results(plain, [t.double() for t in tensors], dy.double()), NAMES, 1e-6)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_backend_agrees_with_float64(shape: tuple[int, ...], isa: str) -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    tensors, dy = case(shape)
    try:
        with native.use_cpu_isa(isa):
            check(results(normed("cpu"), tensors, dy), tensors, dy)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reference_agrees_with_float64(shape: tuple[int, ...]) -> None:
    tensors, dy = case(shape)
    check(results(normed("reference"), tensors, dy), tensors, dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_change_nothing(backend: str) -> None:
    (x, weight), dy = case((4, 6, 10))
    strided = [torch.stack([t, t], -1)[..., 1] for t in (x.transpose(0, 1), weight, dy.transpose(0, 1))]
    wanted = results(normed(backend), [x.transpose(0, 1).contiguous(), weight], strided[2])
    y = rms_norm(*strided[:2], EPS, backend=backend)
    assert y.is_contiguous() and torch.equal(y, wanted[0])
    for got, same in zip(backward(strided[2], *strided[:2], EPS, backend), wanted[1:], strict=True):
        torch.testing.assert_close(got, same)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_huge_and_missing_numbers(backend: str) -> None:
    scale = torch.tensor([0.0, 1e-18, 1e-3, 1.0, 1e15, float("nan")])[:, None]
    x = (torch.linspace(-1, 1, 20) * scale).requires_grad_()
    weight = torch.linspace(-2, 2, 20).requires_grad_()
    y = rms_norm(x, weight, 1e-12, backend=backend)
    torch.testing.assert_close(y.double(), plain(x.double(), weight.double(), 1e-12), rtol=1e-6, atol=0, equal_nan=True)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert dx[:5].isfinite().all() and y[5].isnan().all() and dx[5].isnan().all()
    assert torch.equal(y[0], torch.zeros(20)) and torch.allclose(dx[0], 1e6 * weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_without_eps_it_is_pytorchs(dtype: torch.dtype) -> None:
    x, weight = (t.to(dtype) for t in case((4, 50))[0])
    small = x * 1e-3
    torch.testing.assert_close(rms_norm(small, weight), plain(small, weight, None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_once(dtype: torch.dtype) -> None:
    tensors = [t.to(dtype) for t in case((9, 33))[0]]
    ours, layers, wanted = rms_norm(*tensors, EPS), plain(*tensors), plain(*(t.double() for t in tensors))
    assert ours.dtype is dtype and (ours - wanted).norm() <= 2 * (layers - wanted).norm()


def test_the_same_bits_for_any_number_of_threads_and_any_memory() -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    tensors, dy = case((700, 70))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs = [torch.full_like(t, torch.nan) for t in (tensors[0], *tensors)]
            torch.ops.vmamba._rms_norm_rows(*tensors, EPS, outputs[0])
            torch.ops.vmamba._rms_norm_rows_backward(dy, *tensors, EPS, *outputs[1:])
            found.append(outputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    check(found[0], tensors, dy)


def test_gradcheck_and_no_second_derivative() -> None:
    x, weight = (t.double().requires_grad_() for t in case((4, 2, 5))[0])
    assert torch.autograd.gradcheck(rms_norm, (x, weight))
    (dx,) = torch.autograd.grad(rms_norm(x, weight).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="rms_norm: second derivatives"):
        dx.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    (x, weight), dy = case((3, 4, 5))
    x = x.transpose(0, 1)
    torch.library.opcheck(forward, (x.requires_grad_(), weight.requires_grad_(), EPS, backend))
    torch.library.opcheck(backward, (dy.transpose(0, 1), x.detach(), weight.detach(), EPS, backend))


def test_compile_export_and_vmap() -> None:
    (x, weight), dy = case((6, 10))
    graph = partial(torch.compile(rms_norm, fullgraph=True, dynamic=True, backend="aot_eager"), eps=EPS)
    for got, eager in zip(results(graph, [x, weight], dy), results(normed(), [x, weight], dy), strict=True):
        assert torch.equal(got, eager)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return rms_norm(x, weight)

    exported = torch.export.export(Layer(), (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    assert torch.equal(exported.module()(x[:4]), rms_norm(x[:4], weight))
    mapped = torch.vmap(rms_norm, (0, None))(torch.stack([x, 2 * x]), weight)
    assert torch.equal(mapped, torch.stack([rms_norm(x, weight), rms_norm(2 * x, weight)]))
    leaves = [t.requires_grad_() for t in (x, weight)]
    y = rms_norm(*leaves)
    several = torch.autograd.grad(y, leaves, torch.stack([dy, 2 * dy]), retain_graph=True, is_grads_batched=True)
    for got, wanted in zip(several, torch.autograd.grad(y, leaves, 2 * dy), strict=True):
        torch.testing.assert_close(got[1], wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_around_it_changes_nothing(backend: str) -> None:
    tensors, dy = case((3, 8))
    outside = results(normed(backend), tensors, dy)
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(normed(backend), tensors, dy)
    assert all(b.dtype is torch.float32 and torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"x": torch.tensor(1.0)}, ["weight", "(3,)", "x ()"]),
        ({"weight": torch.zeros(4)}, ["weight", "(4,)", "(2, 3)"]),
        ({"weight": torch.zeros(2, 3)}, ["weight", "[D]", "(2, 3)"]),
        ({"weight": torch.zeros(3).half()}, ["weight", "float16", "float32"]),
        ({"x": torch.zeros(2, 3).long()}, ["floating", "int64"]),
        ({"weight": torch.zeros(3, device="meta")}, ["weight", "meta", "cpu"]),
        ({"backend": "gpu"}, ["backend", "gpu"]),
        ({"backend": "cpu", "x": torch.zeros(2, 3).double(), "weight": torch.zeros(3).double()}, ["float64", "cpu"]),
    ],
)
def test_bad_input_is_one_line(changed: dict, words: list[str]) -> None:
    if changed.get("backend") == "cpu" and CPU_MISSING:
        pytest.skip(CPU_MISSING)
    with pytest.raises(ValueError) as caught:
        rms_norm(**({"x": torch.zeros(2, 3), "weight": torch.zeros(3)} | changed))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
