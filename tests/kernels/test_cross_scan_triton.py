"""Cross scan and cross merge by Triton: equal to the definition. Without a GPU the interpreter runs the kernels."""

from __future__ import annotations

import itertools

import pytest
import torch

from vmamba_kernels import backends, cross_merge, cross_scan, cross_scan_fn, scan_order
from vmamba_kernels.cross_scan import reference
from vmamba_kernels.cross_scan.op import TRITON_TYPES, merge, scan
from vmamba_kernels.triton_support import INTERPRETED

from .cross_scan_cases import DEVICES, LAYOUTS, ORDERS, channel_last, sequences

pytest.importorskip("triton", reason="triton is not installed")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64]
# Square, odd, longer and wider; a single row, column and pixel; several tiles along every axis.
SMALL = [(4, 4), (3, 5), (7, 2), (1, 6), (6, 1), (1, 1)]
FEW = list(zip(ORDERS, itertools.cycle(SMALL), strict=False))
EVERY = list(itertools.product(ORDERS, SMALL))


@pytest.fixture(autouse=True)
def interpreter(request):
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("device") == "cpu":
        if not INTERPRETED:
            pytest.skip("Triton compiles for the GPU here; with TRITON_INTERPRET=1 its interpreter runs on the CPU")


@pytest.fixture(autouse=True)
def poisoned_results(monkeypatch):
    """Every result starts out as NaN, or as 77, so that what a kernel does not write shows."""
    plain = torch.Tensor.new_empty

    def new_empty(self, *sizes, **options):
        made = plain(self, *sizes, **options)
        return made.fill_(float("nan") if made.is_floating_point() else 77)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


def image(order: str, H: int, W: int, channel_first: bool, with_k: bool, dtype=torch.float32, device="cpu", C: int = 3):
    x = torch.randint(-9, 9, (2, *([sequences(order)] if with_k else []), C, H, W), device=device).to(dtype)
    return x if channel_first else channel_last(x)


def check_all_layouts(order: str, H: int, W: int, dtype: torch.dtype, device: str, C: int = 3) -> None:
    for (in_cf, out_cf), one in itertools.product(LAYOUTS, [False, True]):
        for op, slow, with_k in ((scan, reference.scan, one), (merge, reference.merge, True)):
            x = image(order, H, W, in_cf, with_k, dtype, device, C)
            got = op(x, order, in_cf, out_cf, one, "triton")
            assert got.is_contiguous() and got.dtype == dtype
            assert torch.equal(got, slow(x, order, in_cf, out_cf, one)), (H, W, in_cf, out_cf, one, op)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order, size", FEW)
def test_every_order_layout_and_size_equals_the_definition(order, size, device):
    dtype = DTYPES[FEW.index((order, size)) % len(DTYPES)]
    check_all_layouts(order, *size, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order, size", EVERY)
def test_every_combination_equals_the_definition(order, size, dtype, device):
    check_all_layouts(order, *size, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ["cross2d", "test_snake"])
@pytest.mark.parametrize(
    "H, W, C, in_cf, out_cf, merges",
    [(37, 35, 3, True, True, False), (4, 40, 160, False, False, True), (17, 18, 20, True, False, False)],
)
def test_images_of_several_tiles(order, H, W, C, in_cf, out_cf, merges, device):
    op, slow = (merge, reference.merge) if merges else (scan, reference.scan)
    x = image(order, H, W, in_cf, merges, torch.float32, device, C)[:1]
    assert torch.equal(op(x, order, in_cf, out_cf, False, "triton"), slow(x, order, in_cf, out_cf, False))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("H, W, C", [(37, 35, 5), (16, 48, 160), (33, 64, 33)])
def test_all_layouts_of_images_of_several_tiles(order, H, W, C, device):
    check_all_layouts(order, H, W, torch.bfloat16, device, C)


@pytest.mark.parametrize("device", DEVICES)
def test_half_sums_are_taken_in_float32_and_in_order(device):
    y = torch.full((1, 4, 8, 2, 2), 1.0, dtype=torch.bfloat16, device=device)
    y[:, 0] = 256.0
    for in_cf in (True, False):
        merged = cross_merge(y if in_cf else channel_last(y), "unidi", in_channel_first=in_cf, backend="triton")
        # A sum in bfloat16 stays at 256; 259 rounds to 260, but Triton's interpreter cuts it off at 258.
        assert torch.equal(merged, torch.full_like(merged, 258.0 if INTERPRETED and device == "cpu" else 260.0))
    values = torch.randn(2, 4, 3, 5, 7, device=device)
    for order in ("cross2d", "test_snake"):
        y = values[:, : sequences(order)]
        parts = cross_merge(y, order, one_by_one=True, backend="pytorch")
        total = torch.zeros_like(parts[:, 0])
        for k in range(parts.shape[1]):
            total += parts[:, k]
        assert torch.equal(cross_merge(y, order, backend="triton"), total)


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides_are_read_and_empty_batches_pass(device):
    x = torch.randn(2, 8, 4, 8, device=device)
    views = [x[:1].expand(3, -1, -1, -1), x.transpose(2, 3), x.flip(3)[..., ::2], x[:, 1:], x[..., 1:]]
    views += [x.contiguous(memory_format=torch.channels_last), x.expand(2, 8, 4, 8)[:, :, 1:3], x.permute(1, 0, 2, 3)]
    for n, view in enumerate(views):
        order, out_cf = ("cross2d", "test_snake")[n % 2], n % 4 < 2
        got = cross_scan(view, order, out_channel_first=out_cf, backend="triton")
        assert torch.equal(got, reference.scan(view.contiguous(), order, True, out_cf, False)), n
    y = torch.randn(2, 4, 8, 4, 16, device=device)[..., ::2]
    assert torch.allclose(
        cross_merge(y, in_channel_first=False, backend="triton"), reference.merge(y, "cross2d", False, True, False)
    )
    empty = cross_scan(x[:0], out_channel_first=False, backend="triton")
    assert empty.shape == (0, 32, 4, 8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(
    "order, in_cf, out_cf", [("cross2d", False, False), ("rot90", True, False), ("test_snake", False, True)]
)
def test_gradients_equal_those_of_pytorch(order, in_cf, out_cf, one, device):
    flags = dict(in_channel_first=in_cf, out_channel_first=out_cf, one_by_one=one)
    for function, with_k in ((cross_scan, one), (cross_merge, True)):
        x = image(order, 3, 5, in_cf, with_k, device=device).requires_grad_()
        grads = []
        for backend in ("triton", "pytorch"):
            y = function(x, order, backend=backend, **flags)
            weight = torch.arange(y.numel(), device=device).reshape(y.shape).float()
            grads += torch.autograd.grad((y * weight).sum(), x)
        assert torch.equal(*grads)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ["cross2d", "test_snake"])
def test_gradcheck(order, device):
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.randn(1, 2, 3, sequences(order), 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: cross_scan(t, order, backend="triton"), x)
    assert torch.autograd.gradcheck(lambda t: cross_merge(t, order, in_channel_first=False, backend="triton"), y)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "order, in_cf, out_cf, one", [("cross2d", False, False, False), ("test_snake", True, False, True)]
)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_opcheck(order, in_cf, out_cf, one, device, every):
    x = image(order, 3, 4, in_cf, one, device=device).requires_grad_(every)
    y = image(order, 3, 4, in_cf, True, device=device).requires_grad_(every)
    checks = {} if every else {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(scan, (x, order, in_cf, out_cf, one, "triton"), **checks)
    torch.library.opcheck(merge, (y, order, in_cf, out_cf, one, "triton"), **checks)


class RoundTrip(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = cross_scan(x.sin(), out_channel_first=False, backend="triton")
        return cross_merge(y.cumsum(1).unflatten(1, x.shape[2:]), in_channel_first=False, backend="triton")


@pytest.mark.parametrize("device", DEVICES)
def test_compile_and_export_keep_the_sizes_dynamic(device):
    module = RoundTrip()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    example = torch.randn(2, 3, 6, 5, device=device)
    exported = torch.export.export(module, (example,), dynamic_shapes={"x": {2: height, 3: width}}).module()
    for H, W in [(6, 5), (9, 4)]:
        x = torch.randn(2, 3, H, W, device=device)
        expected = module(x)
        assert torch.allclose(exported(x), expected, atol=1e-5)
        leaf = x.clone().requires_grad_()
        y = compiled(leaf)
        y.sum().backward()
        assert torch.allclose(y, expected, atol=1e-5) and torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("device", DEVICES)
def test_vmap(device):
    x = torch.randn(3, 2, 5, 4, 6, device=device)
    mapped = torch.vmap(lambda t: cross_scan(t, "bidi", backend="triton"), in_dims=1)(x)
    assert torch.equal(mapped[1], cross_scan(x[:, 1], "bidi"))


@pytest.mark.parametrize("device", DEVICES)
def test_the_choice_of_a_backend(device):
    assert backends.names("cross_scan") == ["triton", "pytorch"]
    assert backends.choose("cross_scan", "cpu")[0].name == "pytorch"
    assert backends.choose("cross_scan", "cuda")[0].name == "triton"
    x = torch.randn(1, 2, 3, 4, device=device)
    assert torch.equal(cross_scan_fn(x, force_torch=True), cross_scan(x))
    with pytest.raises(ValueError, match="backend: 'cuda' is not one of 'triton', 'pytorch'"):
        cross_scan(x, backend="cuda")
    assert torch.complex64 not in TRITON_TYPES and torch.bool not in TRITON_TYPES
    with pytest.raises(ValueError, match=r"x: torch.bool \(1, 2, 3, 4\) runs on backend 'pytorch' only"):
        cross_scan(x > 0, backend="triton")
    assert torch.equal(cross_scan(x > 0), cross_scan(x) > 0)


@pytest.mark.parametrize("device", DEVICES)
def test_the_error_where_triton_is_absent(monkeypatch, device):
    monkeypatch.setattr("vmamba_kernels.triton_support.INSTALLED", False)
    with pytest.raises(RuntimeError, match="cross_scan: backend 'triton' is absent: .*pip install triton"):
        cross_scan(torch.randn(1, 2, 3, 4, device=device), backend="triton")
    assert backends.choose("cross_scan", "cuda")[0].name == "pytorch"


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("order", ["cross2d", "test_snake"])
@pytest.mark.parametrize("channel_first", [True, False])
def test_more_than_2_31_elements(order, channel_first):
    """More than 2^31 elements lie before the last sequence of one image; every result is compared in full."""
    K, H, W = sequences(order), 4097, 4099
    C = 44 if order == "cross2d" else 66
    assert (K - 1) * H * W * C > 2**31
    flags = dict(in_channel_first=channel_first, out_channel_first=channel_first, backend="triton")
    x = torch.randint(-9, 9, (1, C, H, W), dtype=torch.int8, device="cuda")
    x = x if channel_first else channel_last(x)
    y = cross_scan(x, order, **flags)
    flat = x.flatten(2) if channel_first else x.flatten(1, 2).mT  # [1, C, L]
    for k, row in enumerate(scan_order(order, H, W, "cuda")):
        sequence = y[:, k] if channel_first else y[:, :, k].mT
        for c in range(C):
            assert torch.equal(sequence[:, c], flat[:, c, row]), (k, c)
    merged = cross_merge(y.unflatten(-1, (H, W)) if channel_first else y.unflatten(1, (H, W)), order, **flags)
    assert torch.equal(merged, K * (x.flatten(2) if channel_first else x.flatten(1, 2)))
