"""Cross scan and cross merge: index arithmetic, adjointness, layouts, registered orders, and the op's contracts."""

from __future__ import annotations

import itertools

import pytest
import torch

from vmamba_kernels import (
    cross_merge,
    cross_merge_fn,
    cross_scan,
    cross_scan_fn,
    list_scan_orders,
    register_scan_order,
    scan_order,
)
from vmamba_kernels.cross_scan import reference
from vmamba_kernels.cross_scan.op import merge, scan

from .cross_scan_cases import DEVICES, LAYOUTS, ORDERS, SIZES, channel_last, sequences, snake


def source(order: str, k: int, place: int, H: int, W: int) -> tuple[int, int]:
    """(h, w) read at `place` by sequence k of a published order, from the text of the paper."""
    last = H * W - 1
    rows = divmod(place, W)
    column = divmod(place, H)[::-1]
    if order == "cross2d":
        back = last - place
        return [rows, column, divmod(back, W), divmod(back, H)[::-1]][k]
    if order == "unidi":
        return rows
    if order == "bidi":
        return rows if k < 2 else divmod(last - place, W)
    if order == "rot90":  # torch.rot90 by k, read row by row
        i, j = divmod(place, W if k % 2 == 0 else H)
        return [(i, j), (j, W - 1 - i), (H - 1 - i, W - 1 - j), (H - 1 - j, i)][k]
    assert order == "cascade2d"
    return [rows, (rows[0], W - 1 - rows[1]), column, (H - 1 - column[0], column[1])][k]


@pytest.mark.parametrize("H, W", SIZES)
@pytest.mark.parametrize("order", ["cross2d", "unidi", "bidi", "rot90", "cascade2d"])
def test_published_orders_by_index_arithmetic(order: str, H: int, W: int) -> None:
    x = torch.randn(2, 3, H, W)
    y = cross_scan(x, order)
    assert y.shape == (2, 4, 3, H * W)
    for k, place in itertools.product(range(4), range(H * W)):
        h, w = source(order, k, place, H, W)
        assert torch.equal(y[:, k, :, place], x[:, :, h, w]), (k, place)


def test_rot90_is_torch_rot90() -> None:
    x = torch.randn(2, 3, 4, 7)
    expected = torch.stack([torch.rot90(x, k, (2, 3)).flatten(2) for k in range(4)], dim=1)
    assert torch.equal(cross_scan(x, "rot90"), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("order", ORDERS)
def test_fast_path_equals_the_definition(order: str, dtype: torch.dtype, device: str) -> None:
    for (H, W), (in_cf, out_cf), one in itertools.product(SIZES[:4], LAYOUTS, [False, True]):
        K = sequences(order)
        x = torch.randint(-9, 9, (2, *([K] if one else []), 3, H, W), device=device).to(dtype)
        y = torch.randint(-9, 9, (2, K, 3, H, W), device=device).to(dtype)
        x, y = (x, y) if in_cf else (channel_last(x), channel_last(y))
        for fast, slow, argument in ((scan, reference.scan, x), (merge, reference.merge, y)):
            got = fast(argument, order, in_cf, out_cf, one)
            assert got.is_contiguous() and got.dtype == dtype
            assert torch.equal(got, slow(argument, order, in_cf, out_cf, one)), (H, W, in_cf, out_cf, one)


@pytest.mark.parametrize("order", ORDERS)
def test_merge_is_the_transpose_of_scan(order: str) -> None:
    for (H, W), (in_cf, out_cf), one in itertools.product(SIZES, LAYOUTS, [False, True]):
        K = sequences(order)
        x = torch.randn(2, *([K] if one else []), 3, H, W, dtype=torch.float64)
        x = x if in_cf else channel_last(x)
        flags = dict(in_channel_first=in_cf, out_channel_first=out_cf, one_by_one=one)
        back = dict(in_channel_first=out_cf, out_channel_first=in_cf, one_by_one=one)
        sx = cross_scan(x, order, **flags)
        y = torch.randn_like(sx)
        image = y.unflatten(-1, (H, W)) if out_cf else y.unflatten(1, (H, W))
        my = cross_merge(image, order, **back)
        assert torch.allclose((sx * y).sum(), (x * my.view(x.shape)).sum(), rtol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_one_by_one_is_a_permutation_and_its_inverse(order: str) -> None:
    x = torch.randn(2, sequences(order), 3, 4, 5)
    y = cross_scan(x, order, one_by_one=True)
    maps = scan_order(order, 4, 5)
    for k, row in enumerate(maps):
        assert torch.equal(y[:, k], x[:, k].flatten(2)[..., row])
    assert torch.equal(cross_merge(y.unflatten(-1, (4, 5)), order, one_by_one=True), x.flatten(3))


def test_half_sums_are_taken_in_float32() -> None:
    y = torch.full((1, 4, 64, 2, 2), 1.0, dtype=torch.bfloat16)
    y[:, 0] = 256.0
    for in_cf in (True, False):
        image = y if in_cf else channel_last(y)
        merged = cross_merge(image, "unidi", in_channel_first=in_cf)
        expected = torch.tensor(259.0).to(torch.bfloat16)
        assert torch.equal(merged, expected.expand_as(merged))


@pytest.mark.parametrize("channel_first", [True, False])
@pytest.mark.parametrize("order", ["cross2d", "rot90", "test_snake"])
def test_gradcheck(order: str, channel_first: bool) -> None:
    flags = dict(in_channel_first=channel_first, out_channel_first=channel_first)
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    y = torch.randn(2, sequences(order), 3, 2, 4, dtype=torch.float64)
    if not channel_first:
        x, y = channel_last(x), channel_last(y)
    x.requires_grad_()
    y.requires_grad_()
    for function, argument in ((cross_scan, x), (cross_merge, y)):
        assert torch.autograd.gradcheck(lambda t, f=function: f(t, order, **flags), argument)
        assert torch.autograd.gradgradcheck(lambda t, f=function: f(t, order, **flags), argument)


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("in_cf, out_cf", LAYOUTS)
def test_opcheck(in_cf: bool, out_cf: bool, one: bool) -> None:
    K = 4
    x = torch.randn(2, *([K] if one else []), 3, 4, 5)
    y = torch.randn(2, K, 3, 4, 5)
    x, y = (x, y) if in_cf else (channel_last(x), channel_last(y))
    torch.library.opcheck(scan, (x.requires_grad_(), "cross2d", in_cf, out_cf, one))
    torch.library.opcheck(merge, (y.requires_grad_(), "cross2d", in_cf, out_cf, one))


class RoundTrip(torch.nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = cross_scan(x.sin(), self.order, out_channel_first=False)
        y = y.cumsum(1).unflatten(1, x.shape[2:])
        return cross_merge(y, self.order, in_channel_first=False)


@pytest.mark.parametrize("order", ["cross2d", "cascade2d", "test_snake"])
def test_compile_and_export_keep_the_sizes_dynamic(order: str) -> None:
    module = RoundTrip(order)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    example = torch.randn(2, 3, 6, 5)
    exported = torch.export.export(module, (example,), dynamic_shapes={"x": {2: height, 3: width}}).module()
    for H, W in [(6, 5), (9, 4), (3, 11)]:
        x = torch.randn(2, 3, H, W)
        assert torch.allclose(exported(x), module(x), atol=1e-5)
        grads = []
        for function in (module, compiled):
            leaf = x.clone().requires_grad_()
            function(leaf).square().sum().backward()
            grads.append(leaf.grad)
        assert torch.allclose(*grads, rtol=1e-4, atol=1e-4)


def test_vmap() -> None:
    x = torch.randn(3, 2, 5, 4, 6)
    assert torch.equal(torch.vmap(lambda t: cross_scan(t, "bidi"), in_dims=1)(x)[1], cross_scan(x[:, 1], "bidi"))
    y = cross_scan(x.flatten(0, 1)).unflatten(-1, (4, 6)).unflatten(0, (3, 2))
    assert torch.equal(torch.vmap(cross_merge)(y)[2], cross_merge(y[2]))


def test_any_strides_and_empty_batches() -> None:
    x = torch.randn(2, 3, 4, 5)
    views = [x.expand(2, 3, 4, 5), x[:1].expand(6, -1, -1, -1), x.transpose(2, 3), x.flip(3)[..., ::2]]
    views.append(x.contiguous(memory_format=torch.channels_last))
    for view in views:
        for out_cf in (True, False):
            got = cross_scan(view, out_channel_first=out_cf)
            assert torch.equal(got, cross_scan(view.contiguous(), out_channel_first=out_cf))
    for in_cf in (True, False):
        y = cross_scan(x[:0] if in_cf else channel_last(x[:0]), in_channel_first=in_cf, out_channel_first=False)
        assert y.shape == (0, 20, 4, 3)
        assert cross_merge(y.unflatten(1, (4, 5)), in_channel_first=False).shape == (0, 3, 20)


def test_inference_mode_does_not_spoil_later_training() -> None:
    with torch.inference_mode():
        cross_scan(torch.randn(1, 2, 5, 13), out_channel_first=False)
    x = torch.randn(1, 2, 5, 13, requires_grad=True)
    cross_scan(x, out_channel_first=False).square().sum().backward()
    assert torch.allclose(x.grad, 8 * x.detach())


def test_published_signatures_and_integers() -> None:
    x = torch.randn(2, 3, 4, 5)
    for number, name in ((0, "cross2d"), (1, "unidi"), (2, "bidi"), (3, "rot90"), (-1, "cascade2d")):
        y = cross_scan(x, number)
        assert torch.equal(y, cross_scan(x, name)) and torch.equal(y, cross_scan_fn(x, scans=number))
        y = y.unflatten(-1, (4, 5))
        assert torch.equal(cross_merge(y, number), cross_merge_fn(y, scans=number, force_torch=True))


def test_scan_order_is_int64_on_its_device_and_not_shared() -> None:
    order = scan_order("cross2d", 3, 2)
    assert order.dtype == torch.int64 and order.tolist()[1] == [0, 2, 4, 1, 3, 5]
    order.zero_()
    assert scan_order("cross2d", 3, 2).tolist()[0] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: cross_scan(torch.randn(3, 4, 5)), ["x:", "[B, C, H, W]", "(3, 4, 5)"]),
        (lambda: cross_scan([1]), ["x:", "tensor"]),
        (lambda: cross_scan(torch.randn(2, 3, 0, 5)), ["x:", "H and W", "(2, 3, 0, 5)"]),
        (lambda: cross_scan(torch.randn(2, 3, 4, 5, 6), one_by_one=True), ["x:", "K = 4", "(2, 3, 4, 5, 6)"]),
        (lambda: cross_merge(torch.randn(2, 3, 4, 5, 6)), ["y:", "K = 4", "[B, K, C, H, W]"]),
        (
            lambda: cross_merge(torch.randn(2, 4, 5, 3, 6), in_channel_first=False),
            ["y:", "K = 4", "[B, H, W, K, C]", "(2, 4, 5, 3, 6)"],
        ),
        (lambda: cross_merge(torch.randn(2, 4, 6)), ["y:", "[B, K, C, H, W]"]),
        (lambda: cross_scan(torch.randn(2, 3, 4, 5), "cros2d"), ["order:", "'cros2d'", "Did you mean 'cross2d'?"]),
        (lambda: cross_scan(torch.randn(2, 3, 4, 5), 7), ["order:", "7", "-1"]),
        (lambda: scan_order("cross2d", 0, 5), ["H, W", "0, 5"]),
        (lambda: register_scan_order("cross2d", snake), ["'cross2d'", "exists", "another name"]),
        (lambda: register_scan_order("test_snake", snake), ["exists", "replace=True"]),
        (lambda: register_scan_order("-1", snake), ["name:"]),
        (lambda: register_scan_order("bad", lambda H, W: torch.zeros(2, H * W)), ["'bad'", "integer"]),
        (lambda: register_scan_order("bad", lambda H, W: torch.zeros(2, H * W).long()), ["permutation"]),
        (lambda: register_scan_order("bad", lambda H, W: torch.arange(H * W).expand(H, -1)), ["sequences"]),
    ],
)
def test_bad_input_is_a_value_error_that_names_it(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert "bad" not in list_scan_orders()


def test_an_order_that_breaks_at_one_size_is_refused_when_used() -> None:
    def broken(H: int, W: int) -> torch.Tensor:
        return torch.arange(H * W).view(1, -1) if H < 5 else torch.zeros(1, H * W, dtype=torch.long)

    register_scan_order("test_broken", broken, replace=True)
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(cross_scan(x, "test_broken"), x.flatten(2)[:, None])
    with pytest.raises(ValueError, match="'test_broken' at 5x5"):
        cross_scan(torch.randn(1, 2, 5, 5), "test_broken")
    register_scan_order("test_broken", lambda H, W: torch.arange(H * W).flip(0)[None], replace=True)
    assert torch.equal(cross_scan(x, "test_broken"), x.flatten(2).flip(2)[:, None])
