"""ss2d: values and gradients against the recurrence in float64, over orders, layouts, types, threads and processors."""

from __future__ import annotations

import ctypes
import ctypes.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import (
    cross_merge,
    cross_scan,
    list_scan_orders,
    native,
    register_scan_order,
    scan_order,
    selective_scan,
)
from vmamba_kernels.ss2d import ss2d
from vmamba_kernels.ss2d.sequences import missing

CPU_MISSING = missing("cpu")
CPU = pytest.param("cpu", marks=pytest.mark.skipif(bool(CPU_MISSING), reason=f"ss2d on cpu: {CPU_MISSING}"))
needs_cpu = pytest.mark.skipif(bool(CPU_MISSING), reason=f"ss2d on cpu: {CPU_MISSING}")
BACKENDS = [CPU, "unfused", "reference"]
NAMES = ("y", "x", "x_dbl", "dt_weight", "A", "D", "delta_bias")


def spiral(H: int, W: int) -> Tensor:
    """Three sequences: from the rim inwards, the same backwards, and rows."""
    image, found = torch.arange(H * W).view(H, W), []
    while image.numel():
        found.append(image[0])
        image = torch.rot90(image[1:])
    path = torch.cat(found)
    return torch.stack([path, path.flip(0), torch.arange(H * W)])


if "test_spiral" not in list_scan_orders():
    register_scan_order("test_spiral", spiral)


def case(
    size: tuple[int, int] = (5, 7), N: int = 1, R: int = 6, C: int = 20, order: str = "cross2d", batch: int = 2
) -> list[Tensor]:
    """x, x_dbl, dt_weight, A, D, delta_bias; channel-last, float32, steps of every size."""
    generator = torch.Generator().manual_seed(hash((size, N, R, C, batch)) % 2**31)
    K = len(scan_order(order, 1, 1))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    A = -torch.rand(K * C, N, generator=generator) * 4 - 0.1
    x, x_dbl, dt_weight = draw(batch, *size, C), draw(batch, *size, K * (R + 2 * N)), draw(K, C, R) * R**-0.5
    return [x, x_dbl, dt_weight, A, draw(K * C), draw(K * C) - 1]


def recurrence(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor | None, delta_bias: Tensor | None, order: str
) -> Tensor:
    """y [B, H, W, C] by the definition, step by step in the type of the arguments; autograd gives the gradients."""
    batch, H, W, C = x.shape
    K, _, R = dt_weight.shape
    N = A.shape[1]
    maps = scan_order(order, H, W)
    image, projected = x.flatten(1, 2), x_dbl.flatten(1, 2).unflatten(2, (K, R + 2 * N))
    y = torch.zeros_like(image)
    for k, positions in enumerate(maps):
        u, p = image[:, positions], projected[:, positions, k]
        A_k = A.view(K, C, N)[k]
        raw = p[..., :R] @ dt_weight[k].T + (0 if delta_bias is None else delta_bias.view(K, C)[k])
        delta = F.softplus(raw)[..., None]  # [B, L, C, 1]
        decay, drive = (delta * A_k).exp(), delta * u[..., None] * p[:, :, None, R : R + N]
        h, steps = torch.zeros_like(drive[:, 0]), []
        for decay_l, drive_l, C_l in zip(decay.unbind(1), drive.unbind(1), p[:, :, None, R + N :].unbind(1)):
            h = decay_l * h + drive_l
            steps.append((h * C_l).sum(-1))
        out = torch.stack(steps, 1)
        y = y.index_add(1, positions, out if D is None else out + u * D.view(K, C)[k])
    return y.view(batch, H, W, C)


def run(function, tensors: list[Tensor | None], dy: Tensor, **options) -> list[Tensor | None]:
    """The result of a function and its gradients."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    y.backward(dy.to(y.dtype))
    return [y.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


def expected(tensors: list[Tensor | None], dy: Tensor, order: str) -> list[Tensor | None]:
    return run(recurrence, [None if t is None else t.double() for t in tensors], dy, order=order)


def error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).item()


def assert_all_close(got: list[Tensor | None], wanted: list[Tensor | None], bound: float = 5e-6) -> None:
    for name, a, b in zip(NAMES, got, wanted, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert a.shape == b.shape, name
            assert error(a, b) <= bound, (name, error(a, b))


CASES = [
    dict(order="cross2d", size=(14, 14), N=1, R=24, C=100),
    dict(order="cross2d", size=(17, 33), N=1, R=6, C=48, batch=1),
    dict(order="cross2d", size=(5, 7), N=16, R=1, C=56, batch=3),
    dict(order="unidi", size=(1, 9), N=2, R=1),
    dict(order="bidi", size=(9, 1), N=17, R=6, C=7),
    dict(order="rot90", size=(5, 7), N=1, R=1, C=1),
    dict(order="cascade2d", size=(6, 11), N=3, R=5, C=33),
    dict(order="rows", size=(1, 1), N=1, R=2, C=3),
    dict(order="columns_both", size=(40, 1), N=40, R=3, C=17),
    dict(order="test_spiral", size=(8, 9), N=16, R=24, C=52, batch=17),
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o['order']}-{o['size']}-N{o['N']}-R{o['R']}")
def test_values_and_gradients(options: dict) -> None:
    tensors, order = case(**options), options["order"]
    dy = torch.randn(tensors[0].shape)
    wanted = expected(tensors, dy, order)
    for backend in ("unfused", "reference", *([] if CPU_MISSING else ["cpu"])):
        assert_all_close(run(ss2d, tensors, dy, order=order, backend=backend), wanted)
    exact = run(ss2d, [t.double() for t in tensors], dy, order=order)
    assert exact[0].dtype == torch.float64
    assert_all_close(exact, wanted, 1e-12)


@pytest.mark.parametrize("absent", [(4,), (5,), (4, 5)], ids=["no D", "no delta_bias", "neither"])
@pytest.mark.parametrize("N", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_optional_arguments(backend: str, N: int, absent: tuple[int, ...]) -> None:
    tensors: list[Tensor | None] = [None if i in absent else t for i, t in enumerate(case(N=N))]
    dy = torch.randn(2, 5, 7, 20)
    assert_all_close(run(ss2d, tensors, dy, backend=backend), expected(tensors, dy, "cross2d"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_and_strides_give_the_same(backend: str) -> None:
    for C in (16, 19):
        tensors = case(C=C, N=2)
        x, x_dbl, *weights = tensors
        dy = torch.randn(x.shape)
        y, dx, dx_dbl, *dweights = run(ss2d, tensors, dy, backend=backend)
        images = [(x.permute(0, 3, 1, 2), x_dbl.permute(0, 3, 1, 2)), (x, x_dbl)]
        views = [(a.contiguous(), p.contiguous(), i == 0) for i, (a, p) in enumerate(images)]
        views += [(*images[0], True)]
        wide = torch.cat([x, x], -1)
        views += [(wide[..., :C], x_dbl.flip(1).flip(1), False)]
        views += [(x.transpose(1, 2).contiguous().transpose(1, 2), x_dbl, False)]
        for a, p, channel_first in views:
            a, p = a.detach().requires_grad_(), p.detach().requires_grad_()
            leaves = [w.clone().requires_grad_() for w in weights]
            out = ss2d(a, p, *leaves, channel_first=channel_first, backend=backend)
            assert out.shape == a.shape
            out.backward(dy.permute(0, 3, 1, 2) if channel_first else dy)
            back = (lambda t: t.permute(0, 2, 3, 1)) if channel_first else (lambda t: t)
            got = [back(out.detach()), back(a.grad), back(p.grad), *(leaf.grad for leaf in leaves)]
            assert_all_close(got, [t.double() for t in (y, dx, dx_dbl, *dweights)], 2e-6)
        assert ss2d(images[0][0], images[0][1], *weights, channel_first=True).stride(1) == 1
        expanded = ss2d(x[:1].expand(3, -1, -1, -1), x_dbl[:1].expand(3, -1, -1, -1), *weights, backend=backend)
        assert torch.equal(expanded[0], expanded[2]) and error(expanded[1:2], y[:1].double()) < 2e-6


def composed(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor, **_: object
) -> Tensor:
    """The plain ops in x's type, as a model without ss2d runs them."""
    layout = dict(in_channel_first=False, out_channel_first=False)
    _, H, W, C = x.shape
    K, _, R = dt_weight.shape
    N = A.shape[1]
    p = cross_scan(x_dbl.unflatten(3, (K, R + 2 * N)), one_by_one=True, **layout)
    delta = torch.einsum("blkr,kcr->blkc", p[..., :R], dt_weight.to(x.dtype))
    u = cross_scan(x, **layout)
    b, c = p[..., R : R + N].permute(0, 2, 3, 1), p[..., R + N :].permute(0, 2, 3, 1)
    y = selective_scan(u.flatten(2).mT, delta.flatten(2).mT, A, b, c, D, delta_bias, backend="reference")
    return cross_merge(y.mT.unflatten(2, (K, C)).unflatten(1, (H, W)), **layout).unflatten(1, (H, W))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("N", [1, 16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_are_as_good_as_the_plain_ops_in_them(backend: str, N: int, dtype: torch.dtype) -> None:
    tensors = case(size=(6, 9), N=N, C=40)
    tensors = [t.to(dtype) for t in tensors[:2]] + tensors[2:]
    dy = torch.randn(tensors[0].shape)
    wanted = expected(tensors, dy, "cross2d")
    for out_dtype in (torch.float32, dtype):
        got = run(ss2d, tensors, dy, out_dtype=out_dtype, backend=backend)
        assert got[0].dtype == out_dtype and got[1].dtype == got[2].dtype == dtype and got[3].dtype == torch.float32
        plain = run(lambda *t, to=out_dtype: composed(*t).to(to), tensors, dy)
        for name, ours, theirs, true in zip(NAMES, got, plain, wanted, strict=True):
            assert error(ours, true) <= 2 * error(theirs, true) + 1e-6, (name, error(ours, true), error(theirs, true))


def test_equals_the_plain_ops() -> None:
    tensors = case(size=(9, 8), N=1, C=48)
    dy = torch.randn(tensors[0].shape)
    plain = run(composed, tensors, dy)
    assert_all_close(run(ss2d, tensors, dy), [t.double() for t in plain], 2e-6)


@needs_cpu
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    for options in (dict(batch=1, C=200, size=(7, 9)), dict(batch=19, C=52, size=(9, 5)), dict(batch=2, N=16, C=130)):
        tensors = case(**options)
        dy = torch.randn(tensors[0].shape)
        results = []
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(run(ss2d, tensors, dy, backend="cpu"))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpu
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    library = ctypes.CDLL(str(native.load("cpu").path()))
    library.vmamba_cpu_isa.restype = ctypes.c_char_p
    before = library.vmamba_cpu_isa()
    if not library.vmamba_use_cpu_isa(isa.encode()):
        pytest.skip(f"this processor has no {isa}")
    try:
        for options in (dict(C=100, R=24), dict(N=17, C=21), dict(size=(7, 12), N=16, C=48)):
            tensors = case(**options)
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                tensors = [t.to(dtype).float() for t in tensors[:2]] + tensors[2:]
                dy = torch.randn(tensors[0].shape)
                wanted = expected(tensors, dy, "cross2d")
                got = run(ss2d, [t.to(dtype) for t in tensors[:2]] + tensors[2:], dy, backend="cpu")
                bound = {torch.float32: 5e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}[dtype]
                assert_all_close(got, wanted, bound)
    finally:
        library.vmamba_use_cpu_isa(before)


@needs_cpu
def test_memory_is_written_before_it_is_read() -> None:
    mallopt = getattr(ctypes.CDLL(ctypes.util.find_library("c")), "mallopt", None)
    fill, mmap_threshold = -6, -3
    if mallopt is None or not (mallopt(mmap_threshold, 1 << 30) and mallopt(fill, 128)):
        pytest.skip("this C library cannot fill what it allocates")
    try:
        probe = torch.empty(1 << 16)
        if not (probe > 1e38).all():
            pytest.skip("PyTorch does not allocate by this C library")
        for options in (dict(C=30, batch=3, size=(9, 9)), dict(C=100, batch=1, N=17), dict(batch=20, size=(3, 3))):
            tensors = case(**options)
            dy = torch.randn(tensors[0].shape)
            assert_all_close(run(ss2d, tensors, dy, backend="cpu"), expected(tensors, dy, "cross2d"))
            halves = [t.bfloat16() for t in tensors[:2]] + tensors[2:]
            wanted = expected([t.bfloat16() for t in tensors[:2]] + tensors[2:], dy, "cross2d")
            assert_all_close(run(ss2d, halves, dy, out_dtype=torch.bfloat16, backend="cpu"), wanted, 1e-2)
    finally:
        mallopt(fill, 0)


@pytest.mark.parametrize("N", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_extremes(backend: str, N: int) -> None:
    tensors = case(size=(6, 13), N=N)
    tensors[3][::3] = -1e4
    tensors[3][1] = 0.3  # a state that grows
    tensors[5][::5] = 60.0
    tensors[5][1::5] = -30.0
    dy = torch.randn(tensors[0].shape)
    wanted = expected(tensors, dy, "cross2d")
    got = run(ss2d, tensors, dy, backend=backend)
    for name, a, b in zip(NAMES, got, wanted, strict=True):
        assert a.isfinite().all() and error(a, b) < 5e-5, (name, error(a, b))

    tensors = case(N=N)
    tensors[0][0, 2, 3, 4] = float("nan")
    y = ss2d(*tensors, backend=backend)
    assert y[0, ..., 4].isnan().all() and not y[1].isnan().any() and not y[0, ..., 5].isnan().any()
    tensors = case(N=N)
    tensors[1][1, 0, 0, 0] = float("inf")
    lost = ~recurrence(*(t.double() for t in tensors), order="cross2d").isfinite()
    assert lost.any() and torch.equal(~ss2d(*tensors, backend=backend).isfinite(), lost)
