"""ssd as an operator: gradcheck, opcheck, compile, export, vmap, autocast, backends, what it saves, and bad input."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vmamba_kernels import ssd
from vmamba_kernels.backends import choose
from vmamba_kernels.ssd.op import backward, forward

from .ssd_cases import CHUNKED, REFERENCE, TRITON, Case, scan

BACKENDS = [REFERENCE, CHUNKED, TRITON]
TINY = Case(batch=1, length=5, heads=2, width=2, groups=1, d_state=2)
ABOVE_ZERO = (0.0, None)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("case", [TINY, replace(TINY, optional=False, softplus=False)], ids=str)
def test_gradcheck(case: Case, backend: str) -> None:
    leaves = case.tensors(torch.float64)
    present = [t.requires_grad_() for t in leaves if t is not None]

    def call(*present: Tensor) -> object:
        given = iter(present)
        arguments = [None if t is None else next(given) for t in leaves]
        return ssd(*arguments, **case.options, chunk_size=3, return_final_states=True, backend=backend)

    assert torch.autograd.gradcheck(call, present)


def test_second_derivatives_are_refused() -> None:
    leaves = [t.requires_grad_() for t in TINY.tensors()]
    (first,) = torch.autograd.grad(ssd(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="ssd: second derivatives are not implemented"):
        first.sum().backward()


@pytest.mark.parametrize(
    "backend, dtype, optional",
    [
        ("", torch.float32, True),
        ("chunked", torch.bfloat16, False),
        ("reference", torch.float32, False),
        pytest.param("triton", torch.bfloat16, True, marks=TRITON.marks),
    ],
)
def test_opcheck(backend: str, dtype: torch.dtype, optional: bool) -> None:
    tensors = replace(TINY, optional=optional).tensors(dtype)
    leaves = [None if t is None else t.requires_grad_() for t in tensors]
    flags = (True, *ABOVE_ZERO)
    torch.library.opcheck(forward, (*leaves, *flags, torch.float32, 4, backend))
    frozen = [None if t is None else t.detach() for t in leaves]
    y, last = forward(*frozen, *flags, torch.float32, 4, backend)
    torch.library.opcheck(backward, (torch.randn_like(y), torch.randn_like(last), *frozen, *flags, 4, backend))


@pytest.mark.parametrize("run", [REFERENCE, CHUNKED])
def test_gradients_of_a_subset(run) -> None:
    backend = run[1]
    everything = [t.requires_grad_() for t in Case().tensors()]
    ssd(*everything, backend=backend).square().sum().backward()
    for wanted in itertools.combinations(range(8), 2):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(everything)]
        ssd(*leaves, backend=backend).square().sum().backward()
        for i, (leaf, full) in enumerate(zip(leaves, everything)):
            assert (leaf.grad is not None) == (i in wanted)
            assert leaf.grad is None or torch.equal(leaf.grad, full.grad)
    with torch.no_grad():
        assert not ssd(*everything, backend=backend).requires_grad
    with torch.inference_mode():
        y = ssd(*everything, backend=backend)
    assert torch.equal(y, ssd(*everything, backend=backend).detach())


@pytest.mark.parametrize("run", BACKENDS)
def test_gradient_of_the_last_state_alone(run) -> None:
    leaves = [t.requires_grad_() for t in TINY.tensors()]
    last = ssd(*leaves, return_final_states=True, backend=run[1])[1]
    found = torch.autograd.grad(last.square().sum(), leaves, allow_unused=True)
    expected = torch.autograd.grad(
        ssd(*leaves, return_final_states=True, backend="reference")[1].square().sum(), leaves, allow_unused=True
    )
    for a, b in zip(found, expected):
        assert torch.allclose(a, b, atol=1e-5)


def test_saves_its_inputs_only() -> None:
    tensors = [t.requires_grad_() for t in Case(length=300).tensors()]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ssd(*tensors)
    inputs = {t.data_ptr() for t in tensors}
    assert saved and all(t.data_ptr() in inputs for t in saved)
    y.sum().backward()


@pytest.mark.parametrize("run", BACKENDS)
def test_every_output_is_written(run) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all(), "uninitialised memory is not poisoned"
        case = replace(TINY, length=18) if run[1] == "triton" else Case(batch=3, length=70, heads=6, width=9)
        values = scan(case.tensors(), run[1])
        assert not any(value.isnan().any() for value in values.values())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("run", BACKENDS)
def test_empty_batch(run) -> None:
    values = scan(Case(batch=0).tensors(), run[1])
    assert values["y"].shape == (0, 37, 4, 5) and values["dA"].abs().sum() == 0 and not values["dD"].any()


class Mixer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, _, self.A, _, _, self.D, self.bias, _ = Case().tensors()
        self.A, self.D, self.bias = (torch.nn.Parameter(t) for t in (self.A, self.D, self.bias))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return x * ssd(x.sin(), dt, self.A, B, C, self.D, self.bias, z=x)


def _sequences(length: int) -> list[Tensor]:
    x, dt, _, B, C, *_ = Case(length=length).tensors()
    return [x, dt, B, C]


def test_compile_and_export_keep_the_length_dynamic() -> None:
    torch._dynamo.reset()
    module = Mixer()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(module, tuple(_sequences(37)), dynamic_shapes=({1: length},) * 4)
    constants = [a for node in program.graph.nodes for a in node.args if isinstance(a, float)]
    assert constants and all(math.isfinite(a) for a in constants)  # AOTInductor reads no other back
    exported = program.module()
    for steps in (37, 70, 5):
        given = _sequences(steps)
        assert torch.allclose(exported(*given), module(*given), atol=1e-5)
        grads = []
        for function in (module, compiled):
            leaves = [t.clone().requires_grad_() for t in given]
            module.zero_grad()
            function(*leaves).square().sum().backward()
            grads.append([*(t.grad for t in leaves), *(p.grad.clone() for p in module.parameters())])
        for eager, traced in zip(*grads):
            assert torch.allclose(eager, traced, rtol=1e-4, atol=1e-4)


def test_vmap_over_inputs_and_over_weights() -> None:
    first = Case().tensors()
    second = [t * 0.5 for t in first]
    every = torch.vmap(ssd)(*(torch.stack(pair) for pair in zip(first, second)))
    torch.testing.assert_close(every, torch.stack([ssd(*first), ssd(*second)]))
    x, dt, A, B, C, *_ = first
    some = torch.vmap(lambda a, w: ssd(a, dt, w, B, C), in_dims=(1, 0))(torch.stack([x, second[0]], 1),
                                                                         torch.stack([A, second[2]]))  # fmt: skip
    torch.testing.assert_close(some[1], ssd(second[0], dt, second[2], B, C))
    leaf = x.clone().requires_grad_()
    y = ssd(leaf, *first[1:])
    basis = torch.randn(3, *y.shape)
    (rows,) = torch.autograd.grad(y, leaf, basis, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(rows[2], torch.autograd.grad(y, leaf, basis[2])[0])


def test_autocast_widens_mixed_inputs_and_low_weights_are_used_in_float32() -> None:
    x, dt, A, B, C, *rest = Case().tensors(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ssd(x.float(), dt, A, B, C, *rest)
        same = ssd(x, dt, A, B, C, *rest)
    assert torch.equal(mixed, ssd(x.float(), dt.float(), A, B.float(), C.float(), *rest))
    assert torch.equal(same, ssd(x, dt, A, B, C, *rest))
    low = [w.bfloat16() for w in (A, *rest)]
    wide = [w.float() for w in low]
    assert torch.equal(ssd(x, dt, low[0], B, C, *low[1:]), ssd(x, dt, wide[0], B, C, *wide[1:]))


def test_backends_by_device_and_type() -> None:
    assert choose("ssd", "cpu")[0].name == "chunked"
    assert choose("ssd", "cuda")[0].name in ("triton", "chunked")
    with pytest.raises(ValueError, match="backend: 'cudnn' is not one of 'triton', 'chunked', 'reference'"):
        ssd(*TINY.tensors(), backend="cudnn")


@pytest.mark.parametrize("run", [TRITON])
def test_float64_on_the_kernels_is_refused(run) -> None:
    with pytest.raises(ValueError, match=r"x: float64 \(1, 5, 2, 2\) runs on 'chunked' and 'reference' only"):
        ssd(*TINY.tensors(torch.float64), backend="triton")


BAD = [
    ("x", lambda t: t[0], r"x: expected \[B, L, H, P\], got shape \(37, 4, 5\)"),
    ("x", lambda t: t[:, :0], r"x: expected L, H and P of at least 1, got \(2, 0, 4, 5\) beside dt \(2, 37, 4\)"),
    ("x", lambda t: t.numpy(), r"x: expected a tensor \[B, L, H, P\], got ndarray"),
    ("x", lambda t: t.to(torch.int64), r"x: expected torch.float32.*got torch.int64"),
    ("x", lambda t: t.to_sparse(), r"x: expected a strided tensor"),
    ("dt", lambda t: t[:, :36], r"dt: expected \[B, L, H\] with x's sizes, got shape \(2, 36, 4\) beside x \(2, 37"),
    ("dt", lambda t: t.bfloat16(), r"dt: torch.bfloat16 \(2, 37, 4\) beside x torch.float32"),
    ("dt", lambda t: None, r"dt: expected a tensor \[B, L, H\], got NoneType"),
    ("A", lambda t: t[:3], r"A: expected \[H\] with x's heads, got shape \(3,\) beside x \(2, 37, 4, 5\)"),
    ("A", lambda t: t.double(), r"A: torch.float64 \(4,\) cannot be used in a scan that works in torch.float32"),
    ("B", lambda t: t[:, :5], r"B: expected \[B, L, G, N\] with x's B and L, got shape \(2, 5, 2, 3\)"),
    ("B", lambda t: t.repeat(1, 1, 2, 1)[:, :, :3], r"B: expected G groups that divide x's heads"),
    ("B", lambda t: t.new_zeros(2, 37, 2, 257), r"B: expected 1 <= N <= 256 states, got \(2, 37, 2, 257\)"),
    ("C", lambda t: t[..., :2], r"C: expected B's shape, got shape \(2, 37, 2, 2\) beside B \(2, 37, 2, 3\)"),
    ("D", lambda t: t[:, :2], r"D: expected \[H\] or \[H, P\] with x's sizes.*got shape \(4, 2\)"),
    ("D", lambda t: t[None], r"D: expected \[H\] or \[H, P\], got shape \(1, 4, 5\)"),
    ("dt_bias", lambda t: t.to("meta"), r"dt_bias: \(4,\) is on meta and x \(2, 37, 4, 5\) on cpu"),
    ("initial_states", lambda t: t[..., :2], r"initial_states: expected \[B, H, P, N\].*got shape \(2, 4, 5, 2\)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), BAD, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(BAD)])
def test_bad_arguments_are_named_with_both_shapes(name: str, change, message: str) -> None:
    tensors = dict(zip(("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_states"), Case().tensors()))
    tensors[name] = change(tensors[name])
    with pytest.raises(ValueError, match=message) as caught:
        ssd(*tensors.values())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(seq_idx=torch.zeros(1, 5, dtype=torch.int32)), "seq_idx: several sequences"),
        (dict(chunk_size=0), "chunk_size: expected an int of at least 1, got 0"),
        (dict(chunk_size=1.5), "chunk_size: expected an int of at least 1, got 1.5"),
        (dict(dt_limit=(1.0, 0.5)), r"dt_limit: expected low <= high.*, got \(1.0, 0.5\)"),
        (dict(dt_limit=(math.inf, math.inf)), r"dt_limit: expected low <= high.*, got \(inf, inf\)"),
        (dict(dt_limit=(-math.inf, -math.inf)), r"dt_limit: expected low <= high.*, got \(-inf, -inf\)"),
        (dict(dt_limit=(math.nan, 1.0)), r"dt_limit: expected low <= high.*, got \(nan, 1.0\)"),
        (dict(dt_limit=(0.0, math.nan)), r"dt_limit: expected low <= high.*, got \(0.0, nan\)"),
        (dict(dt_limit=(None, 1.0)), r"dt_limit: expected two numbers.*, got \(None, 1.0\)"),
        (dict(dt_limit=(0, "1")), r"dt_limit: expected two numbers.*, got \(0, '1'\)"),
        (dict(dt_limit=3), "dt_limit: expected two numbers"),
        (dict(out_dtype=torch.float16), "out_dtype: expected torch.float32 or x's torch.float32, got torch.float16"),
        (dict(z=torch.zeros(1, 5, 2, 2, dtype=torch.int64)), r"z: expected torch.float32.*got torch.int64"),
        (dict(z=torch.zeros(1, 5, 2, 3)), r"z: expected \[B, L, H, P\] with x's sizes"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ssd(*TINY.tensors(), **options)
