"""The registered ops vmamba::cross_scan and vmamba::cross_merge: schemas, fake kernels, autograd and vmap.

Inside a graph an op carries the names of the order and of the backend, "" leaving the choice to the device and type of
the tensor; the map is made from the sizes at hand when it runs, so H and W stay dynamic. Each is the other's backward.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, choose, register
from ..triton_support import triton_backend
from .orders import find_order

_library = torch.library.Library("vmamba", "FRAGMENT")
_FLAGS = 'str order, bool in_channel_first, bool out_channel_first, bool one_by_one, str backend=""'
_MODULES = {"pytorch": "copies", "triton": "triton"}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
TRITON_TYPES = frozenset((*_FLOATS, *_INTEGERS))


def _implementation(x: Tensor, backend: str) -> ModuleType:
    """The module of the backend of that name, or of the first that serves the tensor."""
    if not backend:
        backend = choose("cross_scan", x.device.type)[0].name if x.dtype in TRITON_TYPES else "pytorch"
    return import_module(f".{_MODULES[backend]}", __package__)


def _scan(x: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool, backend: str = "") -> Tensor:
    return _implementation(x, backend).scan(x, order, in_cf, out_cf, one_by_one)


def _merge(y: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool, backend: str = "") -> Tensor:
    return _implementation(y, backend).merge(y, order, in_cf, out_cf, one_by_one)


def _sizes(x: Tensor, in_cf: bool) -> tuple[Any, Any, Any, Any]:
    """B, C, H, W of an image in either layout, with or without an axis of K sequences."""
    if in_cf:
        return (x.shape[0], *x.shape[-3:])
    return x.shape[0], x.shape[-1], x.shape[1], x.shape[2]


def _scan_fake(x: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool, backend: str = "") -> Tensor:
    batch, channels, H, W = _sizes(x, in_cf)
    sequences = find_order(order).sequences
    return x.new_empty((batch, sequences, channels, H * W) if out_cf else (batch, H * W, sequences, channels))


def _merge_fake(y: Tensor, order: str, in_cf: bool, out_cf: bool, one_by_one: bool, backend: str = "") -> Tensor:
    batch, channels, H, W = _sizes(y, in_cf)
    kept = (find_order(order).sequences,) if one_by_one else ()
    return y.new_empty((batch, *kept, channels, H * W) if out_cf else (batch, H * W, *kept, channels))


def _define(name: str, argument: str, kernel: Any, fake: Any) -> torch._ops.OpOverload:
    _library.define(f"{name}(Tensor {argument}, {_FLAGS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vmamba::{name}", fake, lib=_library)
    return getattr(torch.ops.vmamba, name).default


scan = _define("cross_scan", "x", _scan, _scan_fake)
merge = _define("cross_merge", "y", _merge, _merge_fake)


def _transpose_of(forward: Any, backward: Any) -> None:
    """Register `backward`, which maps back from the layout of the result, as the gradient of `forward`, and vmap."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.order, ctx.in_cf, ctx.out_cf, ctx.one_by_one, ctx.backend = inputs
        ctx.shape = x.shape

    def run_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        H, W = ctx.shape[-2:] if ctx.in_cf else ctx.shape[1:3]
        grad = grad.unflatten(-1, (H, W)) if ctx.out_cf else grad.unflatten(1, (H, W))
        grad = backward(grad, ctx.order, ctx.out_cf, ctx.in_cf, ctx.one_by_one, ctx.backend)
        return grad.view(ctx.shape), None, None, None, None, None

    def over_batch(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *flags: Any) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0] or 0, 0)
        result = forward(x.flatten(0, 1), *flags)
        return result.unflatten(0, x.shape[:2]), 0

    name = forward._schema.name
    torch.library.register_autograd(name, run_backward, setup_context=setup_context, lib=_library)
    torch.library.register_vmap(name, over_batch, lib=_library)


_transpose_of(scan, merge)
_transpose_of(merge, scan)

register(triton_backend("cross_scan"))
register(Backend("cross_scan", "pytorch"))
