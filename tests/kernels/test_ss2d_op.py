"""ss2d as an operator: what it saves, gradcheck, opcheck, compile, export, vmap, autocast, backends and bad input."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from vmamba_kernels import native
from vmamba_kernels.ss2d import ss2d
from vmamba_kernels.ss2d.arguments import Inputs
from vmamba_kernels.ss2d.layout import chunk_length, stored_states
from vmamba_kernels.ss2d.op import backward, forward
from vmamba_kernels.ss2d.sequences import _refusals_named, missing

CPU_MISSING = missing("cpu")
CPU = pytest.param("cpu", marks=pytest.mark.skipif(bool(CPU_MISSING), reason=f"ss2d on cpu: {CPU_MISSING}"))
BACKENDS = [CPU, "unfused", "reference"]


def case(
    H: int = 3, W: int = 4, N: int = 2, R: int = 3, C: int = 5, channel_first: bool = False, batch: int = 2
) -> list[Tensor]:
    torch.manual_seed(H * 100 + W)
    x, x_dbl = torch.randn(batch, H, W, C), torch.randn(batch, H, W, 4 * (R + 2 * N))
    if channel_first:
        x, x_dbl = x.permute(0, 3, 1, 2).contiguous(), x_dbl.permute(0, 3, 1, 2).contiguous()
    return [x, x_dbl, torch.randn(4, C, R), -torch.rand(4 * C, N) - 0.1, torch.randn(4 * C), torch.randn(4 * C)]


@pytest.mark.parametrize("channel_first, N", [(False, 1), (True, 2)])
def test_gradcheck(channel_first: bool, N: int) -> None:
    tensors = [t.double().requires_grad_() for t in case(2, 3, N, channel_first=channel_first, batch=1, C=2, R=2)]
    assert torch.autograd.gradcheck(lambda *t: ss2d(*t, order="rot90", channel_first=channel_first), tensors)
    with pytest.raises(RuntimeError, match="ss2d: second derivatives"):
        (dx,) = torch.autograd.grad(ss2d(*tensors, channel_first=channel_first).sum(), tensors[:1], create_graph=True)
        dx.sum().backward()


@pytest.mark.parametrize("channel_first", [False, True])
@pytest.mark.parametrize("backend", ["", *BACKENDS])
def test_opcheck(backend: str, channel_first: bool) -> None:
    for dtype, absent in ((torch.float32, ()), (torch.bfloat16, (4, 5))):
        tensors = case(9, 15, channel_first=channel_first)
        tensors = [t.to(dtype) for t in tensors[:2]] + tensors[2:]
        leaves = [None if i in absent else t.requires_grad_() for i, t in enumerate(tensors)]
        flags = ("cross2d", channel_first, torch.float32, True, backend)
        torch.library.opcheck(forward, (*leaves, *flags))
        y, states = (t.detach() for t in forward(*leaves, *flags))
        assert states.shape == (2, stored_states(135, 2), 2, 20) and len(states[0]) > 0
        frozen = [None if t is None else t.detach() for t in leaves]
        torch.library.opcheck(backward, (torch.randn_like(y), *frozen, states, "cross2d", channel_first, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_subset(backend: str) -> None:
    everything = [t.requires_grad_() for t in case()]
    ss2d(*everything, backend=backend).square().sum().backward()
    for wanted in itertools.combinations(range(6), 2):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(everything)]
        ss2d(*leaves, backend=backend).square().sum().backward()
        for i, (leaf, full) in enumerate(zip(leaves, everything)):
            assert (leaf.grad is not None) == (i in wanted)
            assert leaf.grad is None or torch.equal(leaf.grad, full.grad)
    with torch.no_grad():
        assert not ss2d(*everything, backend=backend).requires_grad
    with torch.inference_mode():
        y = ss2d(*everything, backend=backend)
    assert torch.equal(y, ss2d(*everything, backend=backend).detach())


@pytest.mark.parametrize("backend", BACKENDS)
def test_saves_inputs_and_states_only(backend: str) -> None:
    tensors = [t.requires_grad_() for t in case(16, 12, N=1, C=24)]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ss2d(*tensors, backend=backend)
    inputs = {t.data_ptr() for t in tensors}
    others = [t for t in saved if t.data_ptr() not in inputs]
    assert [tuple(t.shape) for t in others] == [(2, stored_states(192, 1), 1, 96)]
    assert 2 <= 192 // chunk_length(1) <= 6
    y.sum().backward()


class Mixer(torch.nn.Module):
    def __init__(self, channel_first: bool) -> None:
        super().__init__()
        self.channel_first = channel_first
        _, _, self.dt_weight, self.A, self.D, self.bias = (torch.nn.Parameter(t) for t in case(C=8))

    def forward(self, x: Tensor, x_dbl: Tensor) -> Tensor:
        weights = (self.dt_weight, self.A, self.D, self.bias)
        return x * ss2d(x.sin(), x_dbl.cos(), *weights, order="rot90", channel_first=self.channel_first)


@pytest.mark.parametrize("channel_first", [False, True])
def test_compile_and_export_keep_the_sizes_dynamic(channel_first: bool) -> None:
    module = Mixer(channel_first)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    first = 2 if channel_first else 1
    shape = {first: height, first + 1: width}
    example = tuple(case(6, 5, C=8, channel_first=channel_first)[:2])
    exported = torch.export.export(module, example, dynamic_shapes=(shape, shape)).module()
    for H, W in [(6, 5), (9, 4), (3, 11)]:
        x, x_dbl = case(H, W, C=8, channel_first=channel_first)[:2]
        assert torch.allclose(exported(x, x_dbl), module(x, x_dbl), atol=1e-5)
        grads = []
        for function in (module, compiled):
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            function(leaf, x_dbl).square().sum().backward()
            grads.append([leaf.grad, *(p.grad.clone() for p in module.parameters())])
        for eager, traced in zip(*grads):
            assert torch.allclose(eager, traced, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", [CPU, "unfused"])
def test_a_named_backend_compiles_into_one_graph(backend: str) -> None:
    tensors = case()
    compiled = torch.compile(partial(ss2d, backend=backend), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*tensors), ss2d(*tensors, backend=backend), atol=1e-6)


def test_vmap_and_empty_batch() -> None:
    x, x_dbl, *weights = case(batch=3)
    x, x_dbl = x[:, None], x_dbl[:, None]
    assert torch.equal(torch.vmap(lambda a, p: ss2d(a, p, *weights))(x, x_dbl)[2], ss2d(x[2], x_dbl[2], *weights))
    leaf = x[1].clone().requires_grad_()
    y = ss2d(leaf, x_dbl[1], *weights)
    basis = torch.randn(3, *y.shape)
    (rows,) = torch.autograd.grad(y, leaf, basis, is_grads_batched=True, retain_graph=True)
    assert torch.allclose(rows[2], torch.autograd.grad(y, leaf, basis[2])[0])

    leaves = [t.requires_grad_() for t in case(batch=0)]
    y = ss2d(*leaves)
    assert y.shape == (0, 3, 4, 5)
    y.sum().backward()
    assert all(not leaf.grad.any() and leaf.grad.shape == leaf.shape for leaf in leaves)


def test_autocast_widens_to_the_widest() -> None:
    x, x_dbl, *weights = case()
    with pytest.raises(ValueError, match="x_dbl: torch.bfloat16"):
        ss2d(x, x_dbl.bfloat16(), *weights)
    with torch.autocast("cpu", torch.bfloat16):
        y = ss2d(x, x_dbl.bfloat16(), *weights)
    assert torch.equal(y, ss2d(x, x_dbl.bfloat16().float(), *weights))
    halves = [w.bfloat16() for w in weights]
    assert torch.equal(ss2d(x, x_dbl, *halves), ss2d(x, x_dbl, *(w.float() for w in halves)))


def test_published_integers_name_orders() -> None:
    tensors = case()
    assert torch.equal(ss2d(*tensors, order=2), ss2d(*tensors, order="bidi"))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = case(C=16)
    expected = ss2d(*tensors)
    monkeypatch.setitem(native._libraries, "cpu", native.Library("cpu", reason=f"not built; {native.REMEDY}"))
    assert torch.allclose(ss2d(*tensors), expected, atol=1e-5)
    with pytest.raises(RuntimeError, match="ss2d: backend 'cpu' is absent: not built; build it with"):
        ss2d(*tensors, backend="cpu")


def changed(index: int, tensor: object, **options: object):
    def call() -> None:
        tensors: list[object] = list(case())
        tensors[index] = tensor
        ss2d(*tensors, **options)  # type: ignore[arg-type]

    return call


@pytest.mark.parametrize(
    "call, words",
    [
        (changed(0, [1]), ["x:", "[B, H, W, C]", "list"]),
        (changed(0, torch.randn(3, 4, 5)), ["x:", "[B, H, W, C]", "(3, 4, 5)"]),
        (changed(0, torch.randn(3, 4, 5), channel_first=True), ["x:", "[B, C, H, W]"]),
        (changed(0, torch.randn(2, 0, 4, 5)), ["x:", "H and W", "(2, 0, 4, 5)"]),
        (changed(0, torch.randn(2, 3, 4, 6)), ["dt_weight:", "(4, 5, 3)", "(2, 3, 4, 6)"]),
        (changed(0, torch.randint(9, (2, 3, 4, 5))), ["x", "torch.int64"]),
        (changed(0, torch.randn(2, 3, 4, 5).to_sparse()), ["x:", "sparse"]),
        (changed(0, torch.randn(2, 3, 4, 5).bfloat16()), ["x_dbl:", "torch.float32", "torch.bfloat16"]),
        (changed(1, torch.randn(2, 3, 4, 27)), ["x_dbl:", "28 = 4 * (3 + 2 * 2)", "(2, 3, 4, 27)", "(20, 2)"]),
        (changed(1, torch.randn(2, 4, 3, 28)), ["x_dbl:", "H and W", "(2, 4, 3, 28)", "(2, 3, 4, 5)"]),
        (changed(2, torch.randn(3, 5, 3)), ["dt_weight:", "'cross2d'", "K = 4", "(3, 5, 3)"]),
        (changed(2, torch.randn(4, 5, 0)), ["dt_weight:", "R >= 1", "(4, 5, 0)"]),
        (changed(2, None), ["dt_weight:", "NoneType"]),
        (changed(3, torch.randn(19, 2)), ["A:", "(19, 2)", "(2, 3, 4, 5)"]),
        (changed(3, torch.randn(20, 0)), ["A:", "1 <= N <= 256", "(20, 0)"]),
        (changed(3, torch.randn(20, 257)), ["A:", "1 <= N <= 256", "(20, 257)"]),
        (changed(3, torch.randn(20, 2).double()), ["A:", "torch.float64"]),
        (changed(4, torch.randn(5)), ["D:", "[K*C]", "(5,)", "(20, 2)"]),
        (changed(5, torch.randn(4, 5)), ["delta_bias:", "[K*C]", "(4, 5)"]),
        (changed(5, torch.randn(20, device="meta")), ["delta_bias:", "meta", "cpu"]),
        (changed(0, torch.randn(2, 3, 4, 5), order="cros2d"), ["order:", "Did you mean 'cross2d'?"]),
        (changed(0, torch.randn(2, 3, 4, 5), order="rows"), ["dt_weight:", "'rows'", "K = 1"]),
        (changed(0, torch.randn(2, 3, 4, 5), backend="gpu"), ["backend:", "'gpu'", "'cpu'", "'reference'"]),
        (changed(0, torch.randn(2, 3, 4, 5), out_dtype=torch.float16), ["out_dtype:", "torch.float16", "(2, 3, 4, 5)"]),
    ],
)
def test_bad_input_is_a_value_error_that_names_it(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.skipif(bool(CPU_MISSING), reason=f"ss2d on cpu: {CPU_MISSING}")
def test_the_native_op_refuses_what_does_not_fit() -> None:
    x, x_dbl, *weights = case()
    x, x_dbl, maps = x.flatten(1, 2).mT, x_dbl.flatten(1, 2), torch.arange(12).expand(4, -1).contiguous()
    op = torch.ops.vmamba._ss2d_sequences
    op(x, x_dbl, *weights, maps, 32, torch.float32, True)
    for bad in (
        (x, x_dbl, *weights, maps + 1, 32),
        (x, x_dbl, *weights, -maps, 32),
        (x, x_dbl, *weights, maps[:, :5], 32),
        (x, x_dbl, *weights, maps.int(), 32),
        (x, x_dbl.double(), *weights, maps, 32),
        (x, x_dbl[:, :5], *weights, maps, 32),
        (x.double(), x_dbl, *weights, maps, 32),
        (x, x_dbl, weights[0].mT.contiguous(), *weights[1:], maps, 32),
        (x, x_dbl, *weights, maps, 0),
    ):
        with pytest.raises(RuntimeError, match="ss2d on cpu"):
            op(*bad, torch.float32, True)


def test_sizes_that_do_not_fit_a_gpu_are_named_with_the_remedy() -> None:
    inputs = Inputs(*case(N=2, R=3), "cross2d", False)
    with pytest.raises(ValueError, match=r"x_dbl: \(2, 3, 4, 28\) .*N = 2 and R = 3 .*'triton' or 'unfused'"):
        with _refusals_named(inputs):
            raise RuntimeError("ss2d on cuda: N = 2 states and R = 3 do not fit into the shared memory of this GPU")
    with pytest.raises(RuntimeError, match="another"), _refusals_named(inputs):
        raise RuntimeError("another")
