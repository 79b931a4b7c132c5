"""The selective scan by Triton: on a GPU where there is one, else in Triton's interpreter, on scans of a few tiles."""

from __future__ import annotations

import pytest
import torch

from vmamba_kernels import backends, selective_scan
from vmamba_kernels.selective_scan import op
from vmamba_kernels.triton_support import INTERPRETED, missing

from .selective_scan_cases import LAYOUTS, Case, assert_close, exact, relative_error, scan, sequential
from .triton_interpreter import mend

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"selective_scan on triton: {missing()}"),
    *([] if INTERPRETED else [pytest.mark.gpu]),
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="selective_scan on triton: no GPU and no TRITON_INTERPRET=1",
    ),
]


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        mend(monkeypatch)


# A tile has 16 steps, of the gradients 8, a chunk 64 (128 above 32 states; on a GPU 32), a block 32, 64 or 128
# channels: sizes on both sides of each.
CASES = [
    Case(batch=1, groups=1, group_channels=1, d_state=1, length=1),
    Case(batch=2, groups=2, group_channels=3, d_state=5, length=9),
    Case(batch=1, groups=1, group_channels=33, d_state=1, length=17, shared=3),
    Case(batch=1, groups=2, group_channels=2, d_state=2, length=65),
    Case(batch=1, groups=1, group_channels=3, d_state=1, length=19, softplus=False),
    Case(batch=1, groups=1, group_channels=96, d_state=1, length=16, optional=False, shared=96),
]
SLOW = [
    Case(batch=1, groups=1, group_channels=3, d_state=1, length=130, softplus=False),
    Case(batch=2, groups=2, group_channels=40, d_state=3, length=129),
    Case(batch=1, groups=1, group_channels=130, d_state=16, length=70),
    Case(batch=1, groups=3, group_channels=5, d_state=33, length=129),
    Case(batch=1, groups=1, group_channels=3, d_state=256, length=20),
]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str
)  # fmt: skip
def test_values_and_gradients(case: Case) -> None:
    layout = LAYOUTS[(case.length + case.group_channels) % 3]
    tensors = case.tensors(layout=layout, device=DEVICE)
    ours = scan(tensors, "triton", delta_softplus=case.softplus)
    assert ours["y"].dtype is torch.float32
    assert_close(ours, exact(tensors, case.softplus), 2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_kept_and_give_the_same(layout: str) -> None:
    case = Case(batch=2, groups=1, group_channels=3, d_state=2, length=5)
    tensors = case.tensors(layout=layout, device=DEVICE)
    tensors[0], tensors[3] = tensors[0].flip(-1), tensors[3][:1].expand_as(tensors[3])
    ours = scan(tensors, "triton")
    assert_close(ours, exact(tensors), 2e-6)
    reference = scan(tensors, "reference")
    assert all(ours[name].stride() == reference[name].stride() for name in ("y", "du", "ddelta", "dB", "dC"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("float_out", [True, False], ids=["float32_out", "same_out"])
def test_low_precision_is_no_worse_than_twice_the_reference(dtype: torch.dtype, float_out: bool) -> None:
    tensors = Case(batch=1, groups=1, group_channels=34, d_state=2, length=11, shared=2).tensors(dtype, device=DEVICE)
    out_dtype = torch.float32 if float_out else dtype
    ours, reference = (scan(tensors, backend, out_dtype=out_dtype) for backend in ("triton", "reference"))
    expected = exact(tensors)
    for name in ours:
        assert ours[name].dtype is reference[name].dtype, name
        ours_error, bound = relative_error(ours[name], expected[name]), relative_error(reference[name], expected[name])
        assert ours_error <= 2 * bound + 2e-6, f"{name}: {ours_error:.2e} against {bound:.2e} of the reference"


def test_softplus_around_its_threshold_and_far_below_zero() -> None:
    tensors = Case(batch=1, groups=1, group_channels=2, optional=False, length=8).tensors(device=DEVICE)
    steps = torch.tensor([-60.0, -15.0, -1e-3, 0.0, 19.9, 20.1, 25.0, 60.0], device=DEVICE)
    tensors[1] = steps.expand_as(tensors[1]).contiguous()
    assert_close(scan(tensors, "triton"), exact(tensors), 3e-6)
    single = [x[..., 0:1] if x is not None and x.dim() > 2 else x for x in tensors]
    last = selective_scan(*single, return_last_state=True, backend="triton")[1]
    torch.testing.assert_close(last.cpu().double(), exact(single)["last_state"], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("decay", [-1e4, 300.0], ids=["huge decay", "growth"])
def test_extremes_over_more_than_a_chunk(decay: float) -> None:
    tensors = Case(batch=1, groups=1, group_channels=2, length=66).tensors(device=DEVICE)
    tensors[2] = torch.full_like(tensors[2], decay)
    if decay > 0:
        assert not selective_scan(*tensors, return_last_state=True, backend="triton")[1].isfinite().any()
    else:
        ours = scan(tensors, "triton")
        assert all(value.isfinite().all() for value in ours.values())
        expected = exact(tensors)
        for name in ("y", "last_state", "du", "dC", "dD"):
            assert relative_error(ours[name], expected[name]) < 3e-6, name


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "delta_bias"])
def test_nan_and_infinity_are_not_swallowed(name: str) -> None:
    position = ("u", "delta", "A", "B", "C", "D", "delta_bias").index(name)
    for bad in (float("nan"), float("inf")):
        tensors = Case(batch=1, groups=2, group_channels=2, length=20).tensors(device=DEVICE)
        tensors[position] = tensors[position].clone()
        tensors[position][(0,) * tensors[position].dim()] = bad
        plain, ours = (selective_scan(*tensors, backend=backend) for backend in ("reference", "triton"))
        assert not plain.isfinite().all() and torch.equal(ours.isfinite(), plain.isfinite()), bad
        assert torch.equal(ours.isnan(), plain.isnan())


def test_every_value_is_written_and_runs_are_alike() -> None:
    case = Case(batch=1, groups=1, group_channels=33, length=66, shared=3)
    torch.use_deterministic_algorithms(True)  # and with it torch.empty holds NaN
    try:
        assert torch.empty(3).isnan().all()
        tensors = case.tensors(device=DEVICE)
        first, second = (scan(tensors, "triton") for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(first, exact(tensors), 2e-6)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_gradients_of_the_last_state_alone_and_of_a_subset() -> None:
    case = Case(batch=1, groups=1, group_channels=2, d_state=2, length=9)
    tensors = [x.requires_grad_() for x in case.tensors(device=DEVICE)]
    wide = [x.detach().double().cpu().requires_grad_() for x in tensors]
    selective_scan(*tensors, return_last_state=True, backend="triton")[1].square().sum().backward()
    sequential(*wide)[1].square().sum().backward()
    for ours, expected in zip(tensors, wide, strict=True):
        assert expected.grad is None or relative_error(ours.grad, expected.grad) < 3e-6
    frozen = [x.detach() for x in tensors]
    leaf = frozen[3].requires_grad_()
    selective_scan(*frozen, backend="triton").square().sum().backward()
    wide = [x.detach().requires_grad_() for x in wide]
    sequential(*wide)[0].square().sum().backward()
    assert relative_error(leaf.grad, wide[3].grad) < 3e-6
    with torch.inference_mode():
        y = selective_scan(*frozen, backend="triton")
    assert torch.equal(y, selective_scan(*frozen, backend="triton").detach())


def test_empty_batch() -> None:
    leaves = [x.requires_grad_() for x in Case(batch=0, group_channels=3, length=3).tensors(device=DEVICE)]
    y, last = selective_scan(*leaves, return_last_state=True, backend="triton")
    assert y.shape == (0, 6, 3) and last.shape == (0, 6, 1)
    y.sum().backward()
    assert all(leaf.grad.shape == leaf.shape and not leaf.grad.any() for leaf in leaves)


def test_vmap_makes_more_groups() -> None:
    first, second = (Case(1, 1, 2, 1, 5).tensors(device=DEVICE) for _ in range(2))
    second = [x * 0.5 for x in second]

    def call(*tensors):
        return selective_scan(*tensors, backend="triton")

    every = torch.vmap(call)(*(torch.stack(pair) for pair in zip(first, second, strict=True)))
    torch.testing.assert_close(every, torch.stack([call(*first), call(*second)]))


def test_opcheck() -> None:
    tensors = Case(1, 1, 2, 1, 3).tensors(device=DEVICE)
    leaves = [x.detach().requires_grad_() for x in tensors]
    torch.library.opcheck(op.on_triton, (*leaves, True, torch.float32, True))
    y, last, states = op.on_triton(*tensors, True, torch.float32, True)
    torch.library.opcheck(
        op.on_triton_backward, (torch.randn_like(y), torch.randn_like(last), *tensors, states, True)
    )  # fmt: skip


def test_compile_fullgraph_and_export_with_the_backend_named() -> None:
    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C, D, delta_bias):
            return selective_scan(u, delta, A, B, C, D, delta_bias, backend="triton") * 2

    torch._dynamo.reset()
    compiled = torch.compile(Scan(), fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (6, 9):
        leaves = [x.requires_grad_() for x in Case(1, 1, 2, 1, length).tensors(device=DEVICE)]
        y, expected = compiled(*leaves), Scan()(*leaves)
        assert torch.equal(y, expected)
        gradients = zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True)
        assert all(torch.equal(ours, want) for ours, want in gradients)
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = {name: {2: length} for name in ("u", "delta")} | {name: {3: length} for name in ("B", "C")}
    shapes |= dict.fromkeys(("A", "D", "delta_bias"))
    program = torch.export.export(Scan(), tuple(Case(1, 1, 2, 1, 6).tensors(device=DEVICE)), dynamic_shapes=shapes)
    assert any(node.target is op.on_triton for node in program.graph.nodes)
    longer = Case(1, 1, 2, 1, 10).tensors(device=DEVICE)
    assert torch.equal(program.module()(*longer), Scan()(*longer))


def test_the_choice_of_a_gpu() -> None:
    order = backends.names("selective_scan")
    assert order.index("cuda") < order.index("triton") < order.index("reference")
    assert next(b for b in backends._backends["selective_scan"] if b.name == "triton").devices == ("cuda",)


def test_without_a_compiled_library_the_op_runs_triton_where_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = next(b for b in backends._backends["selective_scan"] if b.name == "triton")
    monkeypatch.setattr(op, "choose", lambda operator, device: (chosen, []))
    called = []
    monkeypatch.setattr(op, "import_module", lambda name: called.append(name) or pytest.importorskip(name))
    tensors = Case(1, 1, 2, 1, 3).tensors(device=DEVICE)
    forward, backward = op._without_library("forward", 0), op._without_library("backward", 2)
    y, last, states = forward(*tensors, True, torch.float32, True)
    assert torch.equal(y, selective_scan(*tensors, backend="triton"))
    backward(torch.ones_like(y), None, *tensors, states, True)
    assert called[0] == called[1] == "vmamba_kernels.selective_scan.triton"
    wide = [x.double() for x in tensors]
    assert torch.equal(forward(*wide, True, torch.float64, True)[0], selective_scan(*wide))
    assert len(called) == 3


def test_float64_is_for_the_reference() -> None:
    with pytest.raises(ValueError, match="u: float64 .* 'reference' only, not on 'triton'"):
        selective_scan(*Case(length=3).tensors(torch.float64, device=DEVICE), backend="triton")
