"""mlp: parity with float64, gradients, the bias and GELU inside, the operator's contract, bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import native
from vmamba_kernels.mlp import compiled, mlp
from vmamba_kernels.mlp.op import backward, forward

from .gradients import assert_exact, results

CPU_MISSING = compiled.missing("cpu")
CPU = pytest.param("cpu", marks=pytest.mark.skipif(bool(CPU_MISSING), reason=f"mlp on cpu: {CPU_MISSING}"))
BACKENDS = [CPU, "reference"]
NAMES = ("y", "dx", "dweight1", "dbias1", "dweight2", "dbias2")
# The input's shape, and the hidden and the output features.
CASES = [((5,), 3, 2), ((3, 7), 9, 7), ((2, 3, 5, 8), 17, 4), ((1100, 6), 40, 6), ((0, 5), 4, 3), ((2, 1, 4), 1, 1)]


def case(shape: tuple[int, ...], hidden: int, out: int) -> tuple[list[Tensor], Tensor]:
    """The arguments, and a gradient of y."""
    torch.manual_seed(len(shape) + hidden)
    C = shape[-1]
    weights = [torch.randn(hidden, C) / C**0.5, torch.randn(hidden), torch.randn(out, hidden) / hidden**0.5]
    return [torch.randn(shape), *weights, torch.randn(out)], torch.randn(*shape[:-1], out)


def plain(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def check(ours: list[Tensor], tensors: list[Tensor], dy: Tensor) -> None:
    assert_exact(ours, results(plain, [t.double() for t in tensors], dy.double()), NAMES, 3e-6)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("shape, hidden, out", CASES)
def test_the_compiled_backend_agrees_with_float64(
    shape: tuple[int, ...], hidden: int, out: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    if onednn and not compiled.BY_ONEDNN:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(compiled, "BY_ONEDNN", onednn)
    tensors, dy = case(shape, hidden, out)
    check(results(lambda *t: mlp(*t, backend="cpu"), tensors, dy), tensors, dy)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 8), (1000, 40), (0, 5), (3, 0)])
def test_bias_and_gelu_over_the_whole_range(shape: tuple[int, ...], isa: str) -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    torch.manual_seed(shape[-1])
    x, bias, dy = 3 * torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape)
    leaves = [t.double().requires_grad_() for t in (x, bias)]
    exact = F.gelu(leaves[0] + leaves[1])
    exact_dx, exact_dbias = torch.autograd.grad(exact, leaves, dy.double())
    given, (dx, y, y_again) = dy.clone(), (torch.full_like(x, torch.nan) for _ in range(3))
    dbias = torch.full_like(bias, torch.nan)
    try:
        with native.use_cpu_isa(isa):
            torch.ops.vmamba._bias_gelu_rows(x, bias, y)
            torch.ops.vmamba._bias_gelu_rows_backward(dy, x, bias, dx, dbias, None)
            torch.ops.vmamba._bias_gelu_rows_backward(given, x, bias, given, torch.empty_like(bias), y_again)
            x_written = x.clone()
            torch.ops.vmamba._bias_gelu_rows(x_written, bias, x_written)
    except ValueError as error:
        pytest.skip(str(error))
    for got, wanted in ((y, exact), (dx, exact_dx)):
        assert (got.double() - wanted).abs().le(1.5e-6 * (1 + wanted.abs())).all()
    # dbias sums the rows: its error grows with the terms, not with a sum in which they cancel.
    assert (dbias.double() - exact_dbias).abs().le(1.5e-6 * dy.double().abs().sum(0) + 1e-30).all()
    assert torch.equal(given, dx) and torch.equal(y_again, y) and torch.equal(x_written, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_zero_it_is_the_identity_or_nothing_and_nan_stays(backend: str) -> None:
    x = torch.tensor([[-1e30, -50.0, -8.0, 8.0, 50.0, 1e30, float("nan")]]).T.requires_grad_()
    one, zero = torch.ones(1, 1), torch.zeros(1)
    y = mlp(x, one, zero, one, zero, backend=backend)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y[:3].abs().max() < 1e-6 and torch.equal(y[3:6], x[3:6]) and y[6].isnan().all()
    assert dx[:3].abs().max() < 1e-6 and (dx[3:6] - 1).abs().max() < 1e-6 and dx[6].isnan().all()


def test_bias_and_gelu_give_the_same_bits_for_any_number_of_threads() -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    torch.manual_seed(0)
    x, bias, dy, threads, found = (
        torch.randn(1000, 200),
        torch.randn(200),
        torch.randn(1000, 200),
        torch.get_num_threads(),
        [],
    )
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            y, dx, dbias = torch.empty_like(x), torch.empty_like(x), torch.empty_like(bias)
            torch.ops.vmamba._bias_gelu_rows(x, bias, y)
            torch.ops.vmamba._bias_gelu_rows_backward(dy, x, bias, dx, dbias, None)
            found.append((y, dx, dbias))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shape, hidden, out", CASES)
def test_the_reference_agrees_with_float64(shape: tuple[int, ...], hidden: int, out: int) -> None:
    tensors, dy = case(shape, hidden, out)
    check(results(lambda *t: mlp(*t, backend="reference"), tensors, dy), tensors, dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_the_same_and_nothing_is_kept(backend: str) -> None:
    tensors, _ = case((1100, 6), 40, 6)
    y, hidden = forward(*tensors, False, backend)
    assert hidden.shape == (0, 40) and torch.equal(y, forward(*tensors, True, backend)[0])
    strided = torch.stack([tensors[0], tensors[0]], 2)[..., 1]
    assert torch.equal(mlp(strided, *tensors[1:], backend=backend), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_once(dtype: torch.dtype) -> None:
    tensors = [t.to(dtype) for t in case((9, 33), 20, 8)[0]]
    ours, layers, wanted = mlp(*tensors), plain(*tensors), plain(*(t.double() for t in tensors))
    assert ours.dtype is dtype and (ours - wanted).norm() <= 2 * (layers - wanted).norm()


def test_gradcheck_and_no_second_derivative() -> None:
    tensors = [t.double().requires_grad_() for t in case((4, 5), 6, 3)[0]]
    assert torch.autograd.gradcheck(mlp, tuple(tensors))
    (dx,) = torch.autograd.grad(mlp(*tensors).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="mlp: second derivatives"):
        dx.sum().backward()


@pytest.mark.parametrize("backend", ["", *BACKENDS])
def test_opcheck(backend: str) -> None:
    (x, *weights), dy = case((3, 4, 5), 7, 5)
    tensors = (x.transpose(0, 1).requires_grad_(), *(w.requires_grad_() for w in weights))
    for keep_hidden in (True, False):
        torch.library.opcheck(forward, (*tensors, keep_hidden, backend))
    x, *weights = (t.detach() for t in tensors)
    hidden = forward(x, *weights, True, backend)[1]
    for wanted in ([True] * 5, [True, False, True, False, True]):
        torch.library.opcheck(backward, (dy.transpose(0, 1), x, *weights[:3], hidden, wanted, backend))


@pytest.mark.parametrize(
    "asked, products", [([0], 2), ([1, 2], 2), ([2], 1), ([3, 4], 1), ([4], 0), ([0, 1, 2, 3, 4], 4)], ids=str
)
def test_a_gradient_that_no_one_asks_for_is_not_computed(asked: list[int], products: int) -> None:
    tensors = [t.requires_grad_(i in asked) for i, t in enumerate(case((6, 5), 7, 3)[0])]
    y, wanted = mlp(*tensors), [i in asked for i in range(5)]

    def counted(call: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        with torch.profiler.profile() as profile:
            found = call()
        names = [event.name for event in profile.events()]
        assert sum(names.count(name) for name in ("aten::mm", "mkldnn::_linear_pointwise")) == products
        return found

    grads = counted(lambda: torch.autograd.grad(y.sum(), [tensors[i] for i in asked]))
    every = results(mlp, [t.detach() for t in tensors], torch.ones_like(y))[1:]
    x, *weights, bias2 = (t.detach() for t in tensors)
    hidden = forward(x, *weights, bias2, True, "")[1]
    for backend in ["reference"] + [""] * (not CPU_MISSING):
        found = counted(partial(backward, torch.ones_like(y), x, *weights, hidden, wanted, backend))
        assert [grad.numel() > 0 for grad in found] == wanted
        for i, grad in zip(asked, grads, strict=True):
            torch.testing.assert_close(found[i], every[i])
            assert torch.equal(grad, every[i])


def test_compile_export_and_vmap() -> None:
    (x, *weights), dy = case((6, 10), 12, 10)
    wanted = mlp(x, *weights)
    compiled = torch.compile(mlp, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x, *weights), wanted)
    leaves = [t.clone().requires_grad_() for t in (x, *weights)]
    for got, eager in zip(results(compiled, leaves, dy), results(mlp, leaves, dy), strict=True):
        assert torch.equal(got, eager)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mlp(x, *weights)

    exported = torch.export.export(Layer(), (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    torch.testing.assert_close(exported.module()(x[:4]), wanted[:4])
    mapped = torch.vmap(mlp, (0, None, None, None, None))(torch.stack([x, 2 * x]), *weights)
    torch.testing.assert_close(mapped, torch.stack([wanted, mlp(2 * x, *weights)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_over_a_gradient(backend: str) -> None:
    tensors, dy = case((4, 3, 7), 5, 7)
    leaves = [t.requires_grad_() for t in tensors]
    y = mlp(*leaves, backend=backend)
    several = torch.stack([dy, 2 * dy])
    mapped = torch.autograd.grad(y, leaves, several, retain_graph=True, is_grads_batched=True)
    for i, each in enumerate(several):
        for got, wanted in zip(mapped, torch.autograd.grad(y, leaves, each, retain_graph=True), strict=True):
            torch.testing.assert_close(got[i], wanted)


def test_a_gradient_asked_of_a_call_that_kept_nothing() -> None:
    tensors, dy = case((4, 7), 5, 7)
    leaves = [t.requires_grad_() for t in tensors]
    y, _ = forward(*leaves, False, "")
    for got, wanted in zip(torch.autograd.grad(y, leaves, dy), results(mlp, tensors, dy)[1:], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"weight1": torch.zeros(4, 4)}, ["weight1", "(4, 4)", "(2, 3)"]),
        ({"weight2": torch.zeros(5, 3)}, ["weight2", "(5, 3)", "(4, 3)"]),
        ({"bias1": torch.zeros(3)}, ["bias1", "(3,)", "[4]"]),
        ({"bias2": torch.zeros(4)}, ["bias2", "(4,)", "[5]"]),
        ({"bias2": torch.zeros(5).half()}, ["bias2", "float16", "float32"]),
        ({"x": torch.zeros(2, 3).long()}, ["floating", "int64"]),
        ({"weight2": torch.zeros(5, 4, device="meta")}, ["weight2", "meta", "cpu"]),
        ({"backend": "gpu"}, ["backend", "gpu"]),
    ],
)
def test_bad_input_is_one_line(changed: dict, words: list[str]) -> None:
    given = {"x": torch.zeros(2, 3), "weight1": torch.zeros(4, 3), "bias1": torch.zeros(4)}
    given |= {"weight2": torch.zeros(5, 4), "bias2": torch.zeros(5)}
    with pytest.raises(ValueError) as caught:
        mlp(**(given | changed))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_around_it_changes_nothing(backend):
    tensors, dy = case((3, 8), 16, 4)
    outside = results(lambda *t: mlp(*t, backend=backend), tensors, dy)
    with torch.autocast("cpu", torch.bfloat16):
        inside = results(lambda *t: mlp(*t, backend=backend), tensors, dy)
    for name, a, b in zip(NAMES, outside, inside, strict=True):
        assert b.dtype is torch.float32 and torch.equal(a, b), name
