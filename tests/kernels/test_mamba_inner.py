"""mamba_inner: parity with float64, gradients, the operator's contract, bad input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from vmamba_kernels import causal_conv1d, mamba_inner, native, selective_scan
from vmamba_kernels.mamba_inner import compiled
from vmamba_kernels.mamba_inner.op import backward, forward

from .gradients import assert_exact, results

CPU_MISSING = compiled.missing("cpu")
CPU = pytest.param("cpu", marks=pytest.mark.skipif(bool(CPU_MISSING), reason=f"mamba_inner on cpu: {CPU_MISSING}"))
BACKENDS = [CPU, "reference"]
BOTH = (False, True)
NAMES = ("y", "dxz", "dconv_weight", "dconv_bias", "dx_weight", "ddt_weight", "dA", "dD", "ddelta_bias")
# Images, tokens, E, taps, R, N, directions: chunks that end early, several blocks and tasks, every step of the loops.
CASES = [
    (2, 37, 48, 4, 3, 5, BOTH),
    (1, 70, 112, 4, 12, 16, BOTH),
    (19, 4, 16, 3, 1, 1, (True,)),
    (3, 1, 32, 1, 2, 9, (False,)),
    (1, 33, 16, 2, 17, 4, (True, False, True)),
]


def case(B: int, L: int, E: int, W: int, R: int, N: int, reverse: tuple[bool, ...]) -> tuple[list[Tensor], Tensor]:
    """The arguments, and a gradient of y."""
    torch.manual_seed(E + L)
    G = len(reverse)
    tensors = [torch.randn(B, L, 2 * E), torch.randn(G, E, W) / 2, torch.randn(G, E) / 9]
    tensors += [torch.randn(G, R + 2 * N, E) / E**0.5, torch.randn(G, E, R) / R**0.5]
    tensors += [-3 * torch.rand(G * E, N) - 0.01, torch.randn(G * E), torch.randn(G * E) - 2]
    return tensors, torch.randn(B, L, E)


def plain(xz: Tensor, *weights: Tensor, reverse: tuple[bool, ...], scale: float = 0.5) -> Tensor:
    """Each direction by itself, on tokens that are flipped for it."""
    conv_weight, conv_bias, x_weight, dt_weight, A, D, bias = weights
    E, R, N, total = conv_weight.shape[1], dt_weight.shape[2], A.shape[1], 0
    x, z = xz.chunk(2, -1)
    for g, back in enumerate(reverse):
        own = slice(g * E, (g + 1) * E)
        u = causal_conv1d((x.flip(1) if back else x).mT, conv_weight[g], conv_bias[g], "silu")
        dt, b, c = torch.einsum("bel,je->bjl", u, x_weight[g]).split([R, N, N], 1)
        delta = torch.einsum("brl,er->bel", dt, dt_weight[g])
        y = selective_scan(u, delta, A[own], b[:, None], c[:, None], D[own], bias[own]).mT
        total = total + (y.flip(1) if back else y)
    return scale * total * torch.nn.functional.silu(z)


def ours(reverse: tuple[bool, ...], backend: str | None = None):
    return partial(mamba_inner, reverse=reverse, scale=0.5, backend=backend)


def check(found: list[Tensor], tensors: list[Tensor], dy: Tensor, reverse: tuple[bool, ...]) -> None:
    wanted = results(partial(plain, reverse=reverse), [t.double() for t in tensors], dy.double())
    assert_exact(found, wanted, NAMES, 5e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_parity_with_float64(sizes: tuple, backend: str) -> None:
    tensors, dy = case(*sizes)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)  # uninitialised memory is NaN
    try:
        check(results(ours(sizes[-1], backend), tensors, dy), tensors, dy, sizes[-1])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    tensors, dy = case(*CASES[1])
    try:
        with native.use_cpu_isa(isa):
            check(results(ours(BOTH, "cpu"), tensors, dy), tensors, dy, BOTH)
    except ValueError as error:
        pytest.skip(str(error))


def test_the_same_bits_for_any_number_of_threads_in_what_is_no_matrix_product() -> None:
    if CPU_MISSING:
        pytest.skip(CPU_MISSING)
    (xz, *weights), dy = case(5, 70, 112, 4, 5, 16, BOTH)
    u, x_dbl = torch.randn(5, 70, 224), torch.randn(5, 70, 2 * 37)
    _, _, _, dt_weight, *recurrence = weights
    fixed = (u, x_dbl, dt_weight, *recurrence, xz[..., 112:])
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            new = [torch.zeros(s) for s in ((5, 70, 112), (5, 70, 112), (5, 3, 16, 224))]
            torch.ops.vmamba._mamba_inner_scan(*fixed, *new, 32, 48, 2, 0.5)
            grads = [torch.zeros(s) for s in ((5, 70, 112), u.shape, (2, *x_dbl.shape), (3, 2, 23, 112))]
            torch.ops.vmamba._mamba_inner_scan_backward(dy, *fixed, new[0], new[2], *grads, 32, 48, 2, 0.5)
            found.append([*new, *grads])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_growing_states_nan_and_inputs_far_from_zero(backend: str) -> None:
    tensors, dy = case(1, 9, 16, 4, 2, 3, BOTH)
    tensors[5] = -tensors[5] / 3
    check(results(ours(BOTH, backend), tensors, dy), tensors, dy, BOTH)
    tensors[0][0, 3, 2], tensors[0][0, 5, 18:20] = float("nan"), torch.tensor([1e30, -1e30])
    y = mamba_inner(*tensors, reverse=(False,) * 2, backend=backend)
    assert not y[0, :3].isnan().any() and y[0, 3:].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_absent_bias_and_no_gradient(backend: str) -> None:
    (xz, *weights), dy = case(2, 40, 32, 4, 2, 4, BOTH)
    wanted = mamba_inner(xz, *weights, reverse=BOTH, backend=backend)
    assert wanted.is_contiguous() and not wanted.requires_grad
    weights[1] = torch.zeros_like(weights[1])
    leaf = xz.clone().requires_grad_()
    y = mamba_inner(leaf, weights[0], None, *weights[2:], reverse=BOTH, backend=backend)
    assert torch.equal(y, mamba_inner(xz.mT.contiguous().mT, *weights, reverse=BOTH, backend=backend))
    (dxz,) = torch.autograd.grad(y, leaf, dy.mT.contiguous().mT, retain_graph=True)
    assert torch.equal(dxz, torch.autograd.grad(y, leaf, dy)[0])
    empty = mamba_inner(xz[:0].requires_grad_(), *(w.requires_grad_() for w in weights), reverse=BOTH, backend=backend)
    grads = torch.autograd.grad(empty.sum(), weights)
    assert empty.shape == (0, 40, 32) and all(not g.any() for g in grads)


def test_gradcheck_and_no_second_derivative() -> None:
    tensors = [t.double().requires_grad_() for t in case(1, 4, 3, 2, 1, 2, BOTH)[0]]
    assert torch.autograd.gradcheck(ours(BOTH), tuple(tensors), fast_mode=True)
    (dxz,) = torch.autograd.grad(ours(BOTH)(*tensors).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="mamba_inner: second derivatives"):
        dxz.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend: str) -> None:
    tensors, dy = case(2, 5, 16, 3, 2, 3, BOTH)
    options = ([0, 1], 0.5)
    leaves = [t.requires_grad_() for t in tensors]
    torch.library.opcheck(forward, (*leaves, *options, True, backend))
    torch.library.opcheck(forward, (*leaves, *options, False, backend), test_utils=["test_schema", "test_faketensor"])
    tensors = [t.detach() for t in leaves]
    kept = forward(*tensors, *options, True, backend)[1:]
    torch.library.opcheck(backward, (dy, *tensors, *kept, *options, backend))


def test_compile_export_and_vmap() -> None:
    tensors, dy = case(2, 40, 16, 3, 2, 3, BOTH)
    call = ours(BOTH)
    compiled_call = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for got, eager in zip(results(compiled_call, tensors, dy), results(call, tensors, dy), strict=True):
        assert torch.equal(got, eager)
    xz, *weights = tensors

    class Layer(torch.nn.Module):
        def forward(self, xz: Tensor) -> Tensor:
            return call(xz, *weights)

    exported = torch.export.export(Layer(), (xz,), dynamic_shapes=({1: torch.export.Dim("tokens", min=2)},)).module()
    for length in (7, 35):
        torch.testing.assert_close(exported(xz[:, :length]), call(xz[:, :length], *weights))
    mapped = torch.vmap(call, (0, *(None,) * 7))(torch.stack([xz, 2 * xz]), *weights)
    torch.testing.assert_close(mapped, torch.stack([call(xz, *weights), call(2 * xz, *weights)]))
    leaves = [t.requires_grad_() for t in tensors]
    y = call(*leaves)
    (batched,) = torch.autograd.grad(y, xz, torch.stack([dy, 2 * dy]), retain_graph=True, is_grads_batched=True)
    torch.testing.assert_close(batched[1], torch.autograd.grad(y, xz, 2 * dy)[0])


def test_a_gradient_asked_of_a_call_that_kept_nothing_and_autocast_around_it() -> None:
    tensors, dy = case(2, 9, 16, 3, 2, 3, BOTH)
    leaves = [t.requires_grad_() for t in tensors]
    wanted = results(ours(BOTH), tensors, dy)
    y = forward(*leaves, [0, 1], 0.5, False, "")[0]
    for got, grad in zip(torch.autograd.grad(y, leaves, dy), wanted[1:], strict=True):
        assert torch.equal(got, grad)
    with torch.autocast("cpu", torch.bfloat16):
        for got, outside in zip(results(ours(BOTH), tensors, dy), wanted, strict=True):
            assert got.dtype is torch.float32 and torch.equal(got, outside)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"xz": torch.zeros(2, 3, 30)}, ["xz", "(2, 3, 30)", "(2, 16, 3)"]),
        ({"xz": torch.zeros(2, 0, 32)}, ["xz", "L >= 1"]),
        ({"xz": torch.zeros(2, 3, 32).half()}, ["float32 or float64", "float16"]),
        ({"conv_weight": torch.zeros(2, 16, 9)}, ["conv_weight", "<= 8"]),
        ({"conv_bias": torch.zeros(32)}, ["conv_bias", "(32,)"]),
        ({"x_weight": torch.zeros(2, 7, 16)}, ["x_weight", "(2, 7, 16)", "(2, 8, 16)"]),
        ({"dt_weight": torch.zeros(2, 16, 0)}, ["rank", "(2, 16, 0)"]),
        ({"A": torch.zeros(32, 300)}, ["A", "256"]),
        ({"D": torch.zeros(16)}, ["D", "(16,)", "(32,)"]),
        ({"delta_bias": torch.zeros(32).double()}, ["delta_bias", "float64"]),
        ({"D": torch.zeros(32, device="meta")}, ["D", "meta", "cpu"]),
        ({"reverse": (False,)}, ["reverse", "1"]),
        ({"backend": "gpu"}, ["backend", "gpu"]),
    ],
)
def test_bad_input_is_one_line(changed: dict, words: list[str]) -> None:
    names = ("xz", "conv_weight", "conv_bias", "x_weight", "dt_weight", "A", "D", "delta_bias")
    given = dict(zip(names, case(2, 3, 16, 3, 2, 3, BOTH)[0])) | {"reverse": BOTH}
    with pytest.raises(ValueError) as caught:
        mamba_inner(**(given | changed))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_what_the_compiled_backend_does_not_know_runs_on_the_reference() -> None:
    tensors, dy = case(2, 5, 12, 3, 2, 3, BOTH)
    check(results(ours(BOTH), tensors, dy), tensors, dy, BOTH)
    if not CPU_MISSING:
        with pytest.raises(ValueError, match="a multiple of 16 channels"):
            mamba_inner(*tensors, reverse=BOTH, backend="cpu")
