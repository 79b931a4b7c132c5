"""What PyTorch asks of an operator, and what users get for bad input: checks, compile, export, vmap, errors."""

from __future__ import annotations

import pytest
import torch

from vmamba_kernels import backends, native, pooled_scan
from vmamba_kernels.pooled_scan import pool_tokens
from vmamba_kernels.pooled_scan.tokens import token_axes

from .pooled_scan_cases import BACKENDS, LAYOUTS, Case, needs_cpu_library, needs_triton

FAST = [p for p in BACKENDS if p.id != "cpu-triton"]
NAMED = [
    pytest.param("", id="chosen"),
    pytest.param("unfused", id="unfused"),
    pytest.param("reference", id="reference"),
    pytest.param("triton", id="triton", marks=[needs_triton, pytest.mark.slow]),
]


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("case", [Case(grid=(3, 2)), Case(grid=(2, 3), average=False, skip=False, shared=3)], ids=str)
def test_opcheck(backend, layout, case):
    tensors = case.tensors(layout=layout)
    tensors[0] = tensors[0].unflatten(1, (case.groups, case.width))
    tokens = token_axes(6, case.steps(), case.grid, case.pooled_axes)
    options = (tokens, case.reverse, True, case.average)
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    torch.library.opcheck(torch.ops.vmamba.pooled_scan.default, (*leaves, *options, torch.float32, True, backend))
    y, states = torch.ops.vmamba.pooled_scan(*tensors, *options, torch.float32, True, backend)
    arguments = (torch.randn_like(y), *tensors, states, *options, backend)
    torch.library.opcheck(torch.ops.vmamba.pooled_scan_backward.default, arguments)


@pytest.mark.parametrize(
    "case",
    [
        Case(grid=(3, 2), batch=1, width=2),
        Case(grid=(2, 3), pooled_axes=(0,), width=4, shared=2, average=False, d_state=1),
        Case(grid=(2, 2, 2), pooled_axes=(1,), batch=1, width=1, skip=False, optional=False),
    ],
    ids=str,
)
def test_gradcheck(case):
    leaves = case.tensors(torch.float64)
    present = [x.requires_grad_() for x in leaves if x is not None and (case.skip or x is not leaves[0])]

    def call(*present):
        given = iter(present)
        arguments = [x if x is None or not x.requires_grad else next(given) for x in leaves]
        return pooled_scan(*arguments, **case.options())

    assert torch.autograd.gradcheck(call, present)


def test_second_derivatives_are_refused():
    case = Case(grid=(2, 2))
    leaves = [x.requires_grad_() for x in case.tensors()]
    (first,) = torch.autograd.grad(pooled_scan(*leaves, **case.options()).sum(), leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="pooled_scan: second derivatives are not implemented"):
        first.sum().backward()


class Mixer(torch.nn.Module):
    """Pools the rows or the columns of an image [B, H, W, 2*D], and scans them both ways."""

    def __init__(self, pooled_axis: int, backend: str | None) -> None:
        super().__init__()
        self.pooled_axis, self.backend = pooled_axis, backend
        torch.manual_seed(0)
        self.project = torch.nn.Linear(6, 6 + 2 * 2 * 2)
        self.A = torch.nn.Parameter(-torch.rand(6, 2))
        self.D = torch.nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = tuple(x.shape[1:3])
        u = x.flatten(1, 2).transpose(1, 2)
        pooled = pool_tokens(u, grid, self.pooled_axis)
        delta, B, C = self.project(pooled.transpose(1, 2)).transpose(1, 2).split([6, 4, 4], 1)
        B, C = (p.unflatten(1, (2, 2)) for p in (B, C))
        options = {"grid": grid, "pooled_axes": self.pooled_axis, "reverse": (False, True), "average": True}
        return pooled_scan(u, pooled, delta, self.A, B, C, self.D, backend=self.backend, **options)


@pytest.mark.parametrize("run", FAST)
@pytest.mark.parametrize("pooled_axis", [-1, 0])
def test_compile_and_export_with_dynamic_images(run, pooled_axis):
    device, backend = run
    torch._dynamo.reset()
    module = Mixer(pooled_axis, backend).to(device)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    example = torch.randn(2, 6, 5, 6, device=device)
    exported = torch.export.export(module, (example,), dynamic_shapes={"x": {1: height, 2: width}}).module()
    for H, W in [(6, 5), (9, 4), (3, 11)]:
        x = torch.randn(2, H, W, 6, device=device)
        torch.testing.assert_close(exported(x), module(x))
        results = []
        for function in (module, compiled):
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            results.append((y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])))
        for ours, want in zip(*results):
            torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("run", FAST)
def test_compile_by_inductor(run):
    device, backend = run
    torch._dynamo.reset()
    module = Mixer(0, backend).to(device)
    x = torch.randn(2, 4, 3, 6, device=device)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run", FAST)
def test_vmap_over_inputs_and_over_weights(run):
    device, backend = run
    case = Case(grid=(4, 3))
    first = case.tensors(device=device)
    second = [x * 0.5 for x in first]

    def call(*tensors):
        return pooled_scan(*tensors, **case.options(), backend=backend)

    every = torch.vmap(call)(*(torch.stack(pair) for pair in zip(first, second)))
    torch.testing.assert_close(every, torch.stack([call(*first), call(*second)]))
    some = torch.vmap(call, in_dims=(1, *(None,) * 5, 0, None))(
        torch.stack([first[0], second[0]], 1), *first[1:6], torch.stack([first[6], second[6]]), first[7]
    )
    torch.testing.assert_close(some[1], call(second[0], *first[1:6], second[6], first[7]))


@pytest.mark.parametrize("run", FAST)
def test_autocast_widens_mixed_inputs_and_weights_are_used_in_float32(run):
    device, backend = run
    case = Case()
    tensors = case.tensors(torch.bfloat16, device=device)
    with torch.autocast(device, torch.bfloat16):
        mixed = pooled_scan(tensors[0].float(), *tensors[1:], **case.options(), backend=backend)
    assert torch.equal(mixed, pooled_scan(*(x.float() for x in tensors), **case.options(), backend=backend))
    low = [x.bfloat16() for x in tensors]
    wide = [x.float() if i in (3, 6, 7) else x for i, x in enumerate(low)]
    results = [pooled_scan(*t, **case.options(), backend=backend) for t in (low, wide)]
    assert torch.equal(*results)


def changed(name: str, change) -> list:
    tensors = Case().tensors()
    position = ("u_full", "u_pooled", "delta", "A", "B", "C", "D", "delta_bias").index(name)
    tensors[position] = change(tensors[position])
    return tensors


BAD = [
    ("u_full", lambda x: x[0], r"u_full: expected \[B, K\*D, L\] or \[B, K, D, L\], got shape \(18, 15\) beside"),
    ("u_full", lambda x: x[:, :17], r"u_full: .* with u_pooled's B and channels, got shape \(2, 17, 15\) beside"),
    ("u_full", lambda x: x[:1], r"u_full: .* got shape \(1, 18, 15\) beside u_pooled \(2, 18, 5\)"),
    ("u_full", lambda x: x.unflatten(1, (3, 6)), r"u_full: .* with B's K = 2, got shape \(2, 3, 6, 15\)"),
    ("u_full", lambda x: x[..., :0], r"u_full: expected L >= 1, got shape \(2, 18, 0\)"),
    ("u_full", lambda x: x[..., :14], r"grid: expected 14 tokens as in u_full, got \(5, 3\) of 15"),
    ("u_full", lambda x: 3, r"u_full: expected a tensor .*, got int"),
    ("u_full", lambda x: x.to_sparse(), r"u_full: expected a strided tensor"),
    ("u_full", lambda x: x.half(), r"u_full: torch.float16 \(2, 18, 15\) beside u_pooled torch.float32 \(2, 18, 5\)"),
    ("u_full", lambda x: x.to("meta"), r"u_full: \(2, 18, 15\) is on meta and u_pooled on cpu"),
    ("u_pooled", lambda x: x[..., 0], r"u_pooled: expected \[B, K\*D, P\], got shape \(2, 18\)"),
    ("u_pooled", lambda x: x[..., :4], r"delta: expected \[B, DD, P\] with u_pooled's B and P, got shape \(2, 18, 5\)"),
    ("A", lambda x: x[:4], r"A: expected \[K\*D, N\] with u_pooled's channels, got shape \(4, 2\) beside u_pooled"),
    ("B", lambda x: x[..., :4], r"B: expected \[B, K, N, P\] with u_pooled's B and P, got shape \(2, 2, 2, 4\)"),
    ("C", lambda x: x[:, :1], r"C: expected B's shape"),
    ("D", lambda x: x[:3], r"D: expected \[K\*D\] with u_pooled's channels, got shape \(3,\)"),
    ("delta_bias", lambda x: x[:3], r"delta_bias: expected delta's channels, got shape \(3,\) beside delta"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), BAD, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(BAD)])
def test_bad_arguments_are_named_with_both_shapes(name, change, message):
    with pytest.raises(ValueError, match=message):
        pooled_scan(*changed(name, change), **Case().options())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (4, 3)}, r"grid: expected 15 tokens as in u_full, got \(4, 3\) of 12"),
        ({"grid": (5, 3), "pooled_axes": 0}, r"grid: \(5, 3\) without the axes \(0,\) has 3 steps, .* P = 5"),
        ({"grid": (5, 3), "pooled_axes": 2}, r"pooled_axes: expected axes of the grid \(5, 3\), got \(2,\)"),
        ({"grid": (5, 3), "pooled_axes": ()}, r"pooled_axes: expected axes"),
        ({"grid": (0, 3)}, r"grid: expected axes of at least 1 token"),
        ({"grid": (1, 5, 1, 3, 1), "pooled_axes": (1, 3)}, r"pooled_axes: \(1, 3\) of the grid .* more than two runs"),
        ({"reverse": (True,)}, r"reverse: expected a bool, or one for each of K = 2 groups, got \(True,\)"),
        ({"out_dtype": torch.float16}, r"out_dtype: expected torch.float32 or u_full's torch.float32"),
        ({"backend": "cudnn"}, r"backend: 'cudnn' is not one of"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        pooled_scan(*Case().tensors(), **{**Case().options(), **options})


def test_what_does_not_divide_and_too_many_groups_to_average():
    tensors = Case().tensors()
    with pytest.raises(ValueError, match="u_full: expected L to be a multiple of P = 5 or a grid, got L = 14"):
        pooled_scan(tensors[0][..., :14], *tensors[1:])
    shared = [*tensors[:2], tensors[2][:, :3], *tensors[3:7], tensors[7][:3]]
    with pytest.raises(ValueError, match=r"delta: expected a multiple of B's K = 2 channels, got shape \(2, 3, 5\)"):
        pooled_scan(*shared)
    wide = Case(groups=3, reverse=(False, False, True), average=False)
    with pytest.raises(ValueError, match="average: expected K of 1 or 2 groups, got B with K = 3"):
        pooled_scan(*wide.tensors(), average=True)


@needs_cpu_library
def test_float64_goes_to_the_reference_and_the_op_refuses_what_would_crash_native_code():
    case = Case()
    with pytest.raises(ValueError, match="u_full: float64 .* 'reference' only"):
        pooled_scan(*case.tensors(torch.float64), **case.options(), backend="cpu")
    assert pooled_scan(*case.tensors(torch.float64), **case.options()).dtype is torch.float64
    tensors = case.tensors()
    tensors[0] = tensors[0].unflatten(1, (2, 9))
    for position in range(8):
        bad = list(tensors)
        bad[position] = bad[position][:1] if bad[position].dim() < 3 else bad[position][..., :2]
        with pytest.raises(RuntimeError, match="pooled_scan on cpu"):
            torch.ops.vmamba._pooled_scan(*bad, 1, 1, 5, 3, 2, True, True, 64, torch.float32, False)


def test_without_the_library_the_scan_is_unfused_and_insisting_names_the_remedy(monkeypatch):
    absent = native.Library("cpu", reason=f"no compiled library libvmamba_cpu.so; {native.REMEDY}")
    monkeypatch.setitem(native._libraries, "cpu", absent)
    chosen, refused = backends.choose("pooled_scan", "cpu")
    assert chosen.name == "unfused" and [name for name, _ in refused] == ["cpu"]
    with pytest.raises(RuntimeError, match="backend 'cpu' is absent: no compiled library .* build it with"):
        pooled_scan(*Case().tensors(), **Case().options(), backend="cpu")
