"""What PyTorch asks of an operator, and what users get for bad input: checks, compile, export, vmap, errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vmamba_kernels import backends, causal_conv1d, native
from vmamba_kernels.causal_conv1d.op import backward, forward

from .causal_conv1d_cases import BACKENDS, BF16, CPU, CPU_MISSING, F32, REFERENCE, TRITON, Case, lay_out

BOTH = (False, True)
SLOW = pytest.mark.slow
SMALL = Case(batch=2, channels=5, length=9, reverse=BOTH)


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 2, 6, 4, (False,)),
        Case(1, 2, 5, 3, BOTH),
        Case(2, 2, 4, 2, BOTH, own=True, flip=True),
        Case(1, 2, 2, 5, (True,), bias=False, silu=False),
    ],
    ids=str,
)
def test_gradcheck(case):
    leaves = case.tensors(torch.float64)
    present = [t.requires_grad_() for t in leaves if t is not None]
    assert torch.autograd.gradcheck(lambda *t: case.call([*t, None][:3]), present)


def test_second_derivatives_are_refused():
    leaves = [t.requires_grad_() for t in SMALL.tensors()]
    (dx,) = torch.autograd.grad(SMALL.call(leaves).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="causal_conv1d: second derivatives are not implemented"):
        dx.sum().backward()


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("layout", ["channel_last", "channel_first"])
def test_opcheck(run, layout):
    device, backend = run
    cases = (SMALL, F32), (Case(1, 4, 6, 3, BOTH, own=True, bias=False, flip=True), BF16)
    if (device, backend) == ("cpu", "triton"):  # the interpreter takes its time
        cases = ((Case(1, 4, 6, 2, (True,)), F32),)
    for case, dtype in cases:
        leaves = [None if t is None else t.requires_grad_() for t in case.tensors(dtype, layout, device)]
        options = (list(case.reverse), case.silu, case.flip, backend)
        torch.library.opcheck(forward, (*leaves, *options))
        frozen = [None if t is None else t.detach() for t in leaves]
        dy = torch.randn_like(forward(*frozen, *options))
        torch.library.opcheck(backward, (dy, *frozen, *options))


@pytest.mark.parametrize("run", [REFERENCE, CPU])
def test_gradients_of_a_subset(run):
    _, backend = run
    everything = [t.requires_grad_() for t in SMALL.tensors()]
    SMALL.call(everything, backend).square().sum().backward()
    for wanted in itertools.combinations(range(3), 2):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(everything)]
        SMALL.call(leaves, backend).square().sum().backward()
        for i, (leaf, full) in enumerate(zip(leaves, everything)):
            assert (leaf.grad is not None) == (i in wanted)
            assert leaf.grad is None or torch.equal(leaf.grad, full.grad)
    with torch.inference_mode():
        y = SMALL.call(everything, backend)
    assert torch.equal(y, SMALL.call(everything, backend).detach())


@pytest.mark.parametrize("run", BACKENDS)
def test_saves_the_arguments_and_nothing_else(run):
    device, backend = run
    leaves = [t.requires_grad_() for t in SMALL.tensors(device=device)]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = SMALL.call(leaves, backend)
    assert {t.data_ptr() for t in saved} <= {t.data_ptr() for t in leaves}
    y.sum().backward()


class Mixer(torch.nn.Module):
    def __init__(self, case: Case, backend: str | None) -> None:
        super().__init__()
        self.case, self.backend = case, backend
        _, weight, bias = case.tensors()
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.case.call([x.sin(), self.weight, self.bias], self.backend).cos()


@pytest.mark.parametrize(
    "run", [*BACKENDS[:3], pytest.param(*TRITON.values, id=TRITON.id, marks=[*TRITON.marks, SLOW])]
)
@pytest.mark.parametrize("layout", ["channel_last", "channel_first"])
def test_compile_and_export_keep_the_length_dynamic(run, layout):
    device, backend = run
    torch._dynamo.reset()
    module = Mixer(SMALL, backend).to(device)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    x = SMALL.tensors(layout=layout, device=device)[0]
    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(module, (x,), dynamic_shapes=({2: length},)).module()
    for steps in (9, 14) if backend == "triton" else (9, 14, 6):
        x = Case(2, 5, steps).tensors(layout=layout, device=device)[0]
        torch.testing.assert_close(exported(x), module(x))
        gradients = []
        for function in (module, compiled):
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            function(leaf).square().sum().backward()
            gradients.append([leaf.grad, *(p.grad.clone() for p in module.parameters())])
        for eager, traced in zip(*gradients):
            torch.testing.assert_close(eager, traced)


@pytest.mark.slow
@pytest.mark.parametrize("run", [CPU, *BACKENDS[2:3]])
def test_compile_by_inductor(run):
    device, backend = run
    torch._dynamo.reset()
    leaves = [t.requires_grad_() for t in SMALL.tensors(device=device)]
    compiled = torch.compile(lambda *t: SMALL.call(list(t), backend) + 1, fullgraph=True, dynamic=True)
    y = compiled(*leaves)
    torch.testing.assert_close(y, SMALL.call(leaves, backend) + 1)
    y.sum().backward()
    assert all(t.grad is not None for t in leaves)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_vmap(own, bias):
    case = Case(2, 3, 7, 4, BOTH, own=own, bias=bias)
    size = 3
    x = torch.randn(size, *case.tensors()[0].shape)
    weight, offsets = torch.randn(2, 3, size, 4), torch.randn(2, 3, size) if bias else None
    in_dims = {"x": 0, "weight": 2, "offsets": 2 if bias else None}
    for mapped in (("x",), ("weight", "offsets"), ("x", "weight", "offsets")):
        arguments = {"x": x, "weight": weight, "offsets": offsets}
        dims = tuple(d if n in mapped else None for n, d in in_dims.items())
        picked = [
            t if t is None or n in mapped else t.select(in_dims[n], 0) for n, t in arguments.items()
        ]  # fmt: skip
        together = torch.vmap(lambda *t: case.call(list(t)), in_dims=dims)(*picked)
        for i in range(size):
            one = [t if d is None else t.select(d, i) for t, d in zip(picked, dims)]
            torch.testing.assert_close(together[i], case.call(one))
    leaves = [None if t is None else t.requires_grad_() for t in case.tensors()]
    y = case.call(leaves)
    present = [t for t in leaves if t is not None]
    basis = torch.randn(size, *y.shape)
    rows = torch.autograd.grad(y, present, basis, is_grads_batched=True, retain_graph=True)
    for i in range(size):
        for row, one in zip(rows, torch.autograd.grad(y, present, basis[i], retain_graph=True)):
            torch.testing.assert_close(row[i], one)


@pytest.mark.parametrize("run", BACKENDS)
def test_an_empty_batch(run):
    device, backend = run
    leaves = [t.requires_grad_() for t in Case(batch=0, reverse=BOTH).tensors(device=device)]
    y = Case(batch=0, reverse=BOTH).call(leaves, backend)
    assert y.shape == (0, 24, 21)
    y.sum().backward()
    assert all(leaf.grad.shape == leaf.shape and not leaf.grad.any() for leaf in leaves)


def test_weights_in_any_form_and_type():
    x, weight, bias = Case(channels=6).tensors()
    y = causal_conv1d(x, weight, bias)
    for form in (weight[0], weight[0][:, None], weight):
        assert torch.equal(causal_conv1d(x, form, bias.flatten()), y)
    halves = weight.bfloat16(), bias.bfloat16()
    assert torch.equal(causal_conv1d(x, *halves), causal_conv1d(x, *(t.float() for t in halves)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(causal_conv1d(x, weight, bias), y)
    # [C, 1, W] beside one channel is C groups; beside C channels, one group unless as many directions are named.
    assert causal_conv1d(x[:, :1], weight[0][:, None]).shape == (2, 6, 21)
    ways = [True, False, True, False, True, False]
    mixed = causal_conv1d(x, weight[0][:, None], reverse=ways)
    assert torch.equal(mixed[:, ::2], causal_conv1d(x, weight[0], reverse=True)[:, ::2])
    assert torch.equal(mixed[:, 1::2], causal_conv1d(x, weight[0])[:, 1::2])


@pytest.mark.parametrize("layout", ["channel_last", "channel_first"])
def test_the_output_lies_as_the_input(layout):
    x, weight, bias = SMALL.tensors(layout=layout)
    y = causal_conv1d(x, weight, bias, reverse=BOTH)
    assert y.stride() == lay_out(torch.empty(2, 10, 9), layout).stride()


def test_without_the_library(monkeypatch):
    tensors = Case(channels=16).tensors()
    expected = Case(channels=16).call(tensors)
    monkeypatch.setitem(native._libraries, "cpu", native.Library("cpu", reason=f"not built; {native.REMEDY}"))
    torch.testing.assert_close(Case(channels=16).call(tensors), expected)
    with pytest.raises(RuntimeError, match="causal_conv1d: backend 'cpu' is absent: not built; build it with"):
        Case(channels=16).call(tensors, "cpu")


def test_backends_are_registered():
    assert "causal_conv1d" in backends.operators()
    assert backends.names("causal_conv1d") == ["cpu", "cuda", "triton", "reference"]


def changed(index: int, tensor: object, **options: object):
    def call() -> None:
        tensors: list[object] = list(SMALL.tensors())
        tensors[index] = tensor
        causal_conv1d(*tensors, **{"reverse": BOTH, **options})  # type: ignore[arg-type]

    return call


X = torch.randn(2, 5, 9)


@pytest.mark.parametrize(
    "call, words",
    [
        (changed(0, [1]), ["x:", "[B, C, L]", "list"]),
        (changed(0, X[0]), ["x:", "[B, C, L]", "(5, 9)"]),
        (changed(0, X[..., :0]), ["x:", "L >= 1", "(2, 5, 0)", "(2, 5, 4)"]),
        (changed(0, X[:, :0]), ["x:", "one channel", "(2, 0, 9)"]),
        (changed(0, torch.randn(2, 6, 9)), ["weight:", "(2, 5, 4)", "(2, 6, 9)"]),
        (changed(0, X.long()), ["x:", "torch.int64"]),
        (changed(0, X.to_sparse()), ["x:", "sparse"]),
        (changed(1, torch.randn(4)), ["weight:", "[C, W]", "(4,)", "(2, 5, 9)"]),
        (changed(1, torch.randn(2, 5, 9)), ["weight:", "1 <= W <= 8", "(2, 5, 9)"]),
        (changed(1, torch.randn(2, 5, 0)), ["weight:", "1 <= W <= 8", "(2, 5, 0)"]),
        (changed(1, torch.randn(33, 5, 4), reverse=False), ["weight:", "1 <= G <= 32", "(33, 5, 4)"]),
        (changed(1, torch.randn(2, 5, 4).double()), ["weight:", "torch.float64", "torch.float32"]),
        (changed(1, torch.ones(2, 5, 4, dtype=torch.int)), ["weight:", "torch.int32"]),
        (changed(1, None), ["weight:", "NoneType"]),
        (changed(2, torch.randn(5)), ["bias:", "[10] or [2, 5]", "(5,)", "(2, 5, 4)"]),
        (changed(2, torch.randn(2, 5, device="meta")), ["bias:", "meta", "cpu"]),
        (changed(0, X, reverse=(True,)), ["reverse:", "2 of them", "(True,)", "(2, 5, 4)"]),
        (changed(0, X, activation="gelu"), ["activation:", "'gelu'", "'silu'"]),
        (changed(0, X, backend="gpu"), ["backend:", "'gpu'", "'cpu'", "'reference'"]),
        (changed(0, X.double(), backend="cpu"), ["x:", "float64", "'reference'", "'cpu'"]),
    ],
)
def test_bad_input_is_a_value_error_that_names_it(call, words: list[str]) -> None:
    if "'cpu'" in words and "float64" in words and CPU_MISSING:
        pytest.skip(CPU_MISSING)
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.skipif(bool(CPU_MISSING), reason=CPU_MISSING)
def test_the_native_op_refuses_what_does_not_fit() -> None:
    x, weight, bias = SMALL.tensors()
    out = x.new_empty(2, 10, 9)
    op = torch.ops.vmamba._causal_conv1d
    op(x, weight, bias, out, 2, True, False)
    for bad in (
        (x, weight, bias, out[:, :9]),
        (x, weight, bias, out.bfloat16()),
        (x.double(), weight, bias, out.double()),
        (x, weight.double(), bias, out),
        (x, weight[..., ::2], bias, out),
        (x, weight, bias[:, :4], out),
        (x[:, :4], weight, bias, out),
        (x, torch.randn(2, 5, 9), bias, out),
        (x[..., :0], weight, bias, out[..., :0]),
    ):
        with pytest.raises(RuntimeError, match="causal_conv1d on cpu"):
            op(*bad, 2, True, False)
