"""ss2d by Triton: on a GPU where there is one, else in Triton's interpreter, on images of a few tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vmamba_kernels import backends
from vmamba_kernels.ss2d import ss2d
from vmamba_kernels.ss2d.op import backward, forward
from vmamba_kernels.triton_support import INTERPRETED, missing

from .test_ss2d import NAMES, assert_all_close, case, error, expected, run
from .triton_interpreter import mend

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"ss2d on triton: {missing()}"),
    *([] if INTERPRETED else [pytest.mark.gpu]),
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(), reason="ss2d on triton: no GPU and no TRITON_INTERPRET=1"
    ),
]


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        mend(monkeypatch)


def moved(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.to(DEVICE) for t in tensors]


def on_triton(tensors: list[Tensor | None], dy: Tensor, channel_first: bool = False, **options) -> list[Tensor | None]:
    """The result and the gradients of a channel-last case, computed in either layout, on the CPU."""

    def call(x: Tensor, x_dbl: Tensor, *weights: Tensor | None) -> Tensor:
        if not channel_first:
            return ss2d(x, x_dbl, *weights, backend="triton", **options)
        x, x_dbl = (t.permute(0, 3, 1, 2).contiguous() for t in (x, x_dbl))
        y = ss2d(x, x_dbl, *weights, backend="triton", channel_first=True, **options)
        assert y.is_contiguous()
        return y.permute(0, 2, 3, 1)

    return [None if t is None else t.cpu() for t in run(call, moved(tensors), dy.to(DEVICE))]


# A tile has 16 steps, a chunk 64 (128 above 32 states), a block 32, 64 or 128 channels: sizes on both sides of each.
CASES = [
    dict(order="cross2d", size=(3, 6), N=1, R=6, C=5, batch=1),
    dict(order="rows_both", size=(1, 3), N=16, R=1, C=4, batch=1),
    dict(order="unidi", size=(1, 9), N=2, R=1, C=4),
    dict(order="bidi", size=(9, 1), N=3, R=17, C=7, batch=1),
    dict(order="rot90", size=(3, 5), N=1, R=1, C=1, batch=1),
    dict(order="rows", size=(1, 1), N=1, R=2, C=3),
    dict(order="rows_both", size=(1, 17), N=1, R=3, C=96, batch=1),
    dict(order="columns_both", size=(90, 1), N=1, R=3, C=2, batch=1),
]
SLOW = [
    dict(order="test_spiral", size=(5, 13), N=1, R=2, C=3, batch=1),
    dict(order="cascade2d", size=(2, 6), N=5, R=5, C=33, batch=1),
    dict(order="cross2d", size=(14, 14), N=1, R=24, C=100),
    dict(order="cross2d", size=(17, 33), N=1, R=6, C=48, batch=1),
    dict(order="rows", size=(10, 13), N=33, R=2, C=3, batch=1),
    dict(order="rot90", size=(5, 27), N=16, R=49, C=130, batch=2),
]


@pytest.mark.parametrize(
    "options",
    [*CASES, *(pytest.param(options, marks=pytest.mark.slow) for options in SLOW)],
    ids=lambda o: f"{o['order']}-{o['size']}-N{o['N']}-R{o['R']}-C{o['C']}",
)
def test_values_and_gradients(options: dict) -> None:
    tensors, order = case(**options), options["order"]
    dy = torch.randn(tensors[0].shape)
    channel_first = options["size"][0] % 2 == 1
    assert_all_close(on_triton(tensors, dy, channel_first, order=order), expected(tensors, dy, order))


@pytest.mark.parametrize("absent", [(4,), (5,), (4, 5)], ids=["no D", "no delta_bias", "neither"])
def test_optional_arguments(absent: tuple[int, ...]) -> None:
    made = case(size=(2, 3), order="bidi", N=2, R=2, C=3, batch=1)
    tensors: list[Tensor | None] = [None if i in absent else t for i, t in enumerate(made)]
    dy = torch.randn(1, 2, 3, 3)
    assert_all_close(on_triton(tensors, dy, order="bidi"), expected(tensors, dy, "bidi"))


def test_any_strides() -> None:
    x, x_dbl, *weights = moved(case(size=(3, 4), order="rows", N=1, R=2, C=6))
    y = ss2d(x, x_dbl, *weights, order="rows", backend="triton")
    wide = torch.cat([x, x], -1)[..., :6]
    swapped = x.transpose(1, 2).contiguous().transpose(1, 2)
    for image in (wide, swapped, x.flip(2).flip(2)):
        assert torch.equal(ss2d(image, x_dbl.flip(1).flip(1), *weights, order="rows", backend="triton"), y)
    stored = x.permute(0, 3, 1, 2)
    out = ss2d(stored, x_dbl.permute(0, 3, 1, 2), *weights, order="rows", channel_first=True, backend="triton")
    assert out.stride(1) == 1 and torch.equal(out, y.permute(0, 3, 1, 2))
    alike = ss2d(x[:1].expand(3, -1, -1, -1), x_dbl[:1].expand(3, -1, -1, -1), *weights, order="rows", backend="triton")
    assert torch.equal(alike[0], y[0]) and torch.equal(alike[2], y[0])


@pytest.mark.parametrize("channel_first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_value_is_written_and_runs_are_alike(channel_first: bool) -> None:
    tensors = case(size=(5, 14), order="rows_both", N=1, R=2, C=3, batch=1)
    dy = torch.randn(tensors[0].shape)
    torch.use_deterministic_algorithms(True)  # and with it torch.empty holds NaN
    try:
        assert torch.empty(3).isnan().all()
        got = on_triton(tensors, dy, channel_first, order="rows_both")
        again = on_triton(tensors, dy, channel_first, order="rows_both")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_all_close(got, expected(tensors, dy, "rows_both"))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_extremes() -> None:
    tensors = case(size=(4, 5), order="rows_both", N=2, C=9, batch=1)
    tensors[3][::3] = -1e4
    tensors[3][1] = 0.3  # a state that grows
    tensors[5][::5] = 60.0
    tensors[5][2::5] = -30.0
    dy = torch.randn(tensors[0].shape)
    got = on_triton(tensors, dy, order="rows_both")
    for name, a, b in zip(NAMES, got, expected(tensors, dy, "rows_both"), strict=True):
        assert a.isfinite().all() and error(a, b) < 5e-5, (name, error(a, b))


def test_nan_and_infinity_reach_what_depends_on_them() -> None:
    tensors = case(size=(2, 9), order="rows_both", N=2, C=4)
    tensors[0][0, 1, 3, 2] = float("nan")
    y = ss2d(*moved(tensors), order="rows_both", backend="triton").cpu()
    assert y[0, ..., 2].isnan().all() and not y[1].isnan().any() and not y[0, ..., 3].isnan().any()
    tensors = case(size=(2, 9), order="rows_both", N=2, C=4)
    tensors[1][1, 0, 0, 0] = float("inf")
    y = ss2d(*moved(tensors), order="rows_both", backend="triton").cpu()
    reference = ss2d(*tensors, order="rows_both", backend="reference")
    assert not reference.isfinite().all() and torch.equal(y.isfinite(), reference.isfinite())


@pytest.mark.parametrize("channel_first", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_opcheck(channel_first: bool) -> None:
    x, x_dbl, *weights = moved(case(size=(1, 3), order="rows", N=2, R=2, C=3))
    if channel_first:
        x, x_dbl = (t.permute(0, 3, 1, 2).contiguous() for t in (x, x_dbl))
    leaves = [t.requires_grad_() for t in (x, x_dbl, *weights)]
    flags = ("rows", channel_first, torch.float32, True, "triton")
    torch.library.opcheck(forward, (*leaves, *flags))
    frozen = [t.detach() for t in leaves]
    y, states = forward(*frozen, *flags)
    torch.library.opcheck(backward, (torch.randn_like(y), *frozen, states, "rows", channel_first, "triton"))


def test_compile_fullgraph_and_export_with_the_backend_named() -> None:
    class Scan(torch.nn.Module):
        def forward(self, x: Tensor, x_dbl: Tensor, *weights: Tensor) -> Tensor:
            return ss2d(x, x_dbl, *weights, order="rows", backend="triton") * 2

    torch._dynamo.reset()
    compiled = torch.compile(Scan(), fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 3), (3, 2)):
        leaves = [t.requires_grad_() for t in moved(case(size=size, order="rows", R=2, C=3, batch=1))]
        y, plain = compiled(*leaves), Scan()(*leaves)
        assert torch.equal(y, plain)
        gradients = zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(plain.sum(), leaves), strict=True)
        assert all(torch.equal(ours, wanted) for ours, wanted in gradients)
    height = torch.export.Dim("height", min=2, max=64)
    example = tuple(moved(case(size=(2, 3), order="rows", R=2, C=3, batch=1)))
    shapes = ({1: height}, {1: height}, (None,) * 4)
    program = torch.export.export(Scan(), example, dynamic_shapes=shapes)
    assert any(node.target is forward and "triton" in node.args for node in program.graph.nodes)
    longer = moved(case(size=(4, 3), order="rows", R=2, C=3, batch=1))
    assert torch.equal(program.module()(*longer), Scan()(*longer))


def test_empty_batch() -> None:
    leaves = [t.requires_grad_() for t in moved(case(size=(2, 3), order="rows", C=3, batch=0))]
    y = ss2d(*leaves, order="rows", backend="triton")
    y.sum().backward()
    assert y.shape == (0, 2, 3, 3) and all(not leaf.grad.any() and leaf.grad.shape == leaf.shape for leaf in leaves)


@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_are_joined_in_order(reverse: bool) -> None:
    from vmamba_kernels.selective_scan.triton_chunks import join

    make = torch.Generator().manual_seed(3)
    slots = torch.randn(2, 35, 2, 5, generator=make)
    A, total = -torch.rand(5, 2, generator=make), torch.rand(2, 36, 5, generator=make)
    last = torch.randn(2, 5, 2, generator=make)
    x, wanted = last.mT.double() if reverse else torch.zeros(2, 2, 5).double(), torch.empty(2, 35, 2, 5).double()
    for j in reversed(range(35)) if reverse else range(35):
        x = (A.mT.double() * total[:, j + reverse, None]).exp() * x + slots[:, j]
        wanted[:, j] = x
    got = slots.to(DEVICE)
    join(got, A.to(DEVICE), total.to(DEVICE), reverse, last.to(DEVICE) if reverse else None)
    assert error(got.cpu(), wanted) < 1e-6


def test_a_gpu_prefers_it_to_the_plain_ops() -> None:
    order = backends.names("ss2d")
    assert order.index("triton") < order.index("unfused") < order.index("reference")
    assert next(b for b in backends._backends["ss2d"] if b.name == "triton").devices == ("cuda",)
