"""What PyTorch asks of an operator, and what users get for bad input: checks, compile, export, errors."""

from __future__ import annotations

import pytest
import torch

from vmamba_kernels import backends, native, selective_scan

from .selective_scan_cases import BACKENDS, LAYOUTS, Case, needs_cpu_library, relative_error

OPS = [
    pytest.param(torch.ops.vmamba.selective_scan, id="by_device"),
    pytest.param(torch.ops.vmamba.selective_scan_reference, id="reference"),
]
BACKWARDS = {
    "selective_scan": torch.ops.vmamba.selective_scan_backward.default,
    "selective_scan_reference": torch.ops.vmamba.selective_scan_reference_backward.default,
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case(length=65), torch.float32),
        (Case(d_state=3, length=5, optional=False), torch.bfloat16),
        (Case(d_state=2, length=130, shared=2, softplus=False), torch.float32),
    ],
    ids=str,
)
def test_opcheck(op, layout, case, dtype):
    tensors = case.tensors(dtype, layout)
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    torch.library.opcheck(op.default, (*leaves, case.softplus, torch.float32, True))
    y, last, states = op(*tensors, case.softplus, torch.float32, True)
    arguments = (torch.randn_like(y), torch.randn_like(last), *tensors, states, case.softplus)
    torch.library.opcheck(BACKWARDS[op.__name__.split(".")[-1]], arguments)


@pytest.mark.parametrize(
    "case", [Case(1, 2, 2, 2, 5), Case(1, 1, 4, 1, 3, 2), Case(1, 1, 2, 1, 4, 1, False, False)], ids=str
)
def test_gradcheck(case):
    leaves = case.tensors(torch.float64)
    present = [x.requires_grad_() for x in leaves if x is not None]

    def call(*present):
        given = iter(present)
        arguments = [None if x is None else next(given) for x in leaves]
        return selective_scan(*arguments, delta_softplus=case.softplus, return_last_state=True)

    assert torch.autograd.gradcheck(call, present)


def test_gradcheck_across_chunks():
    leaves = [x.requires_grad_() for x in Case(1, 1, 1, 1, 67).tensors(torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x), leaves, fast_mode=True)


def test_second_derivatives_are_refused():
    leaves = [x.requires_grad_() for x in Case(length=4).tensors()]
    (first,) = torch.autograd.grad(selective_scan(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan: second derivatives are not implemented"):
        first.sum().backward()


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("layout", ["channel_last", "channel_first"])
def test_compile_fullgraph_with_dynamic_shapes(run, layout):
    device, backend = run
    torch._dynamo.reset()

    def model(*tensors):
        y, last = selective_scan(*tensors, return_last_state=True, backend=backend)
        return y * 2, last

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (65, 70, 40):
        leaves = [x.requires_grad_() for x in Case(d_state=2, length=length).tensors(layout=layout, device=device)]
        y, last = compiled(*leaves)
        expected, expected_last = model(*leaves)
        assert torch.equal(y, expected) and torch.equal(last, expected_last)
        gradients = torch.autograd.grad(y.sum() + last.sum(), leaves)
        for ours, want in zip(gradients, torch.autograd.grad(expected.sum() + expected_last.sum(), leaves)):
            torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("run", BACKENDS)
def test_compile_by_inductor(run):
    device, backend = run
    torch._dynamo.reset()
    leaves = [x.requires_grad_() for x in Case(length=65).tensors(device=device)]
    compiled = torch.compile(lambda *x: selective_scan(*x, backend=backend) + 1, fullgraph=True, dynamic=True)
    y = compiled(*leaves)
    torch.testing.assert_close(y, selective_scan(*leaves, backend=backend) + 1)
    y.sum().backward()
    assert all(x.grad is not None for x in leaves)


@pytest.mark.parametrize("run", BACKENDS)
def test_export_with_a_dynamic_length(run):
    device, backend = run

    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C, D, delta_bias):
            return selective_scan(u, delta, A, B, C, D, delta_bias, backend=backend)

    tensors = Case(length=65).tensors(device=device)
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = {"u": {2: length}, "delta": {2: length}, "A": None, "B": {3: length}, "C": {3: length}, "D": None,
              "delta_bias": None}  # fmt: skip
    program = torch.export.export(Scan(), tuple(tensors), dynamic_shapes=shapes)
    longer = Case(length=100).tensors(device=device)
    torch.testing.assert_close(program.module()(*longer), Scan()(*longer))


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [Case(), Case(d_state=5, group_channels=9), Case(shared=2)], ids=str)
def test_every_output_is_written(run, layout, case):
    device, backend = run
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all(), "uninitialised memory is not poisoned"
        leaves = [x.requires_grad_() for x in case.tensors(layout=layout, device=device)]
        y, last = selective_scan(*leaves, return_last_state=True, backend=backend)
        gradients = torch.autograd.grad([y, last], leaves, [torch.ones_like(y), torch.ones_like(last)])
        assert not any(value.isnan().any() for value in (y, last, *gradients))
    finally:
        torch.use_deterministic_algorithms(False)


def changed(name: str, change) -> list:
    tensors = Case(d_state=2, length=5).tensors()
    position = ("u", "delta", "A", "B", "C", "D", "delta_bias").index(name)
    tensors[position] = change(tensors[position])
    return tensors


BAD = [
    ("u", lambda x: x[0], r"u: expected \[B, K\*D, L\], got shape \(24, 5\)"),
    ("u", lambda x: x[:, :, :0], r"u: expected at least one channel and L >= 1, got \(2, 24, 0\)"),
    ("u", lambda x: x.numpy(), r"u: expected a tensor"),
    ("u", lambda x: x.to(torch.int64), r"u: expected torch.float32.*got torch.int64"),
    ("u", lambda x: x.to(torch.complex64), r"u: expected torch.float32.*got torch.complex64"),
    ("u", lambda x: x.to_sparse(), r"u: expected a strided tensor"),
    ("u", lambda x: x[:, :23], r"delta: expected DD channels that divide u's, got shape \(2, 24, 5\) beside u"),
    ("delta", lambda x: x[:1], r"delta: expected \[B, DD, L\] with u's B and L, got shape \(1, 24, 5\) beside u"),
    ("delta", lambda x: x[..., :4], r"delta: .* got shape \(2, 24, 4\) beside u \(2, 24, 5\)"),
    ("delta", lambda x: x[:, :7], r"delta: expected DD channels that divide u's"),
    ("delta", lambda x: x[:, :0], r"delta: expected DD channels that divide u's"),
    ("delta", lambda x: x.bfloat16(), r"delta: torch.bfloat16 \(2, 24, 5\) beside u torch.float32"),
    ("delta", lambda x: None, r"delta: expected a tensor \[B, DD, L\], got NoneType"),
    ("A", lambda x: x[:5], r"A: expected \[K\*D, N\] with u's channels, got shape \(5, 2\) beside u \(2, 24, 5\)"),
    ("A", lambda x: x[0], r"A: expected \[K\*D, N\], got shape \(2,\)"),
    ("A", lambda x: x.new_zeros(24, 257), r"A: expected 1 <= N <= 256 states, got \(24, 257\)"),
    ("A", lambda x: x.new_zeros(24, 0), r"A: expected 1 <= N <= 256 states, got \(24, 0\)"),
    ("A", lambda x: x.double(), r"A: torch.float64 \(24, 2\) cannot be used in a scan that works in torch.float32"),
    ("A", lambda x: x.to(torch.int32), r"A: torch.int32"),
    ("B", lambda x: x[..., :4], r"B: expected \[B, K, N, L\] with u's B and L, got shape \(2, 2, 2, 4\) beside u"),
    ("B", lambda x: x.repeat(1, 5, 1, 1)[:, :5], r"B: expected K groups that divide u's channels"),
    ("B", lambda x: x[:, :, :1], r"B: expected \[B, K, N, L\] with A's N, got shape \(2, 2, 1, 5\) beside A \(24, 2\)"),
    ("B", lambda x: x[0], r"B: expected \[B, K, N, L\], got shape \(2, 2, 5\)"),
    ("C", lambda x: x[:, :1], r"C: expected B's shape, got shape \(2, 1, 2, 5\) beside B \(2, 2, 2, 5\)"),
    ("C", lambda x: x.half(), r"C: torch.float16"),
    ("D", lambda x: x[:3], r"D: expected \[K\*D\] with u's channels, got shape \(3,\) beside u \(2, 24, 5\)"),
    ("D", lambda x: 1.0, r"D: expected a tensor \[K\*D\], got float"),
    ("D", lambda x: x.to("meta"), r"D: \(24,\) is on meta and u \(2, 24, 5\) on cpu"),
    ("delta_bias", lambda x: x[:3], r"delta_bias: expected delta's channels, got shape \(3,\) beside delta"),
    ("C", lambda x: x.to("meta"), r"C: \(2, 2, 2, 5\) is on meta"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), BAD, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(BAD)])
def test_bad_arguments_are_named_with_both_shapes(name, change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(*changed(name, change))


def test_bad_options():
    tensors = Case().tensors(torch.bfloat16)
    with pytest.raises(ValueError, match="out_dtype: expected torch.float32 or u's torch.bfloat16, got torch.float16"):
        selective_scan(*tensors, out_dtype=torch.float16)
    with pytest.raises(ValueError, match="backend: 'cudnn' is not one of"):
        selective_scan(*tensors, backend="cudnn")


@needs_cpu_library
def test_float64_on_the_native_backend_is_refused_and_by_default_goes_to_the_reference():
    tensors = Case().tensors(torch.float64)
    with pytest.raises(ValueError, match="u: float64 .* 'reference' only"):
        selective_scan(*tensors, backend="cpu")
    y = selective_scan(*tensors)
    assert y.dtype is torch.float64
    assert torch.equal(y, selective_scan(*tensors, backend="reference"))


@needs_cpu_library
def test_the_op_itself_refuses_what_would_crash_native_code():
    tensors = Case(d_state=2).tensors()
    for position in range(7):
        bad = list(tensors)
        bad[position] = bad[position][:1, ...] if bad[position].dim() < 3 else bad[position][..., :3]
        with pytest.raises(RuntimeError, match="selective_scan on cpu"):
            torch.ops.vmamba.selective_scan(*bad, True, torch.float32, False)
    with pytest.raises(RuntimeError, match="must be float32"):
        torch.ops.vmamba.selective_scan(*(x.double() for x in tensors), True, torch.float64, False)


def test_without_the_library_the_reference_serves_and_insisting_names_the_remedy(monkeypatch):
    absent = native.Library("cpu", reason=f"no compiled library libvmamba_cpu.so; {native.REMEDY}")
    monkeypatch.setitem(native._libraries, "cpu", absent)
    chosen, refused = backends.choose("selective_scan", "cpu")
    assert chosen.name == "reference"
    assert [name for name, _ in refused] == ["cpu"]
    with pytest.raises(RuntimeError, match="backend 'cpu' is absent: no compiled library .* build it with") as caught:
        selective_scan(*Case().tensors(), backend="cpu")
    assert "\n" not in str(caught.value)
    row = next(row for row in native.explain() if row[:2] == ("selective_scan", "cpu"))
    assert row.backend == "reference" and "cpu: no compiled library" in row.reason


def test_a_library_that_does_not_load_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    (tmp_path / "libvmamba_cpu.so").write_bytes(b"not a library")
    library = native._try_load(native.Library("cpu"))
    assert not library.loaded
    assert library.reason.startswith("libvmamba_cpu.so does not load with torch")


def test_explain_has_a_row_for_every_operator_and_device():
    rows = native.explain()
    assert {("selective_scan", "cpu"), ("selective_scan", "cuda")} <= {row[:2] for row in rows}
    assert all(row.backend in backends.names(row.operator) for row in rows)


def test_relative_error_can_fail():
    assert relative_error(torch.ones(4), torch.zeros(4)) > 1
