"""Cross scan and cross merge: an image [H, W] to K sequences of length L = H*W, and back.

A scan order is K permutations of the positions (`orders.py`); the merge of an order is the transpose of its scan.
"""

from __future__ import annotations

from torch import Tensor

from ..backends import require
from ..companions import refuse_tangents
from .op import TRITON_TYPES, merge, scan
from .orders import find_order, list_scan_orders, register_scan_order, scan_order

__all__ = [
    "cross_merge",
    "cross_merge_fn",
    "cross_scan",
    "cross_scan_fn",
    "list_scan_orders",
    "register_scan_order",
    "scan_order",
]


def cross_scan(
    x: Tensor,
    order: str | int = "cross2d",
    *,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The K sequences of an image in their scan orders: [B, K, C, L], or [B, L, K, C] if not `out_channel_first`.

    Args:
        x: [B, C, H, W], or [B, H, W, C] if not `in_channel_first`; any type, any strides. One by one, [B, K, C, H, W]
            or [B, H, W, K, C]: sequence k is read from image k. Channel-last to channel-last is the fastest.
        order: a name of `list_scan_orders()` or a published integer (0 cross2d, 1 unidi, 2 bidi, 3 rot90,
            -1 cascade2d).
        backend: None chooses by device; "triton" or "pytorch" insist.

    Differentiable (the backward is `cross_merge`); works under torch.compile and torch.export with dynamic H and W.

    Raises:
        ValueError: a wrong rank, an unknown order or backend, a K that is not the order's, or an empty image.
        RuntimeError: a backend that was asked for is absent, with the remedy.

    Source: Liu et al., "VMamba", 2024, section 4.2 (SS2D).
    """
    name = _checked("x", x, order, in_channel_first, with_k=one_by_one)
    refuse_tangents("cross_scan", x)
    return scan(x, name, in_channel_first, out_channel_first, one_by_one, _required("x", x, backend))


def cross_merge(
    y: Tensor,
    order: str | int = "cross2d",
    *,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The sum of K sequences, each put back in row-major order: [B, C, L], or [B, L, C] if not `out_channel_first`.

    Args:
        y: [B, K, C, H, W], or [B, H, W, K, C] if not `in_channel_first`: sequences along L, viewed with the sizes of
            their image. One by one the sequences are put back and not summed: [B, K, C, L] or [B, L, K, C].
        order, backend: as for `cross_scan`.

    The sum is taken in float32 for half types. Differentiable: the backward is `cross_scan`.

    Raises:
        ValueError, RuntimeError: as `cross_scan`.
    """
    name = _checked("y", y, order, in_channel_first, with_k=True)
    refuse_tangents("cross_merge", y)
    return merge(y, name, in_channel_first, out_channel_first, one_by_one, _required("y", y, backend))


def _required(argument: str, x: Tensor, backend: str | None) -> str:
    """The name of the backend that was asked for, after a check that it serves the tensor; "" if none was."""
    if backend is None:
        return ""
    name = require("cross_scan", backend, x.device.type).name
    if name == "triton" and x.dtype not in TRITON_TYPES:
        raise ValueError(f"{argument}: {x.dtype} {tuple(x.shape)} runs on backend 'pytorch' only, not on 'triton'")
    return name


def _checked(argument: str, x: Tensor, order: str | int, channel_first: bool, with_k: bool) -> str:
    """The name of the order, after a check of the tensor against it."""
    found = find_order(order)
    axes = "BKCHW" if channel_first else "BHWKC"
    axes = axes if with_k else axes.replace("K", "")
    layout = f"[{', '.join(axes)}]"
    if not isinstance(x, Tensor):
        raise ValueError(f"{argument}: expected a tensor {layout}, got {type(x).__name__}")
    if x.dim() != len(axes):
        raise ValueError(f"{argument}: expected {layout}, got {x.dim()} axes {tuple(x.shape)}")
    if with_k and x.shape[axes.index("K")] != found.sequences:
        needed = f"order {found.name!r} needs K = {found.sequences} in {layout}"
        raise ValueError(f"{argument}: {needed}, got {tuple(x.shape)}")
    if x.shape[axes.index("H")] == 0 or x.shape[axes.index("W")] == 0:
        raise ValueError(f"{argument}: expected H and W of at least 1 in {layout}, got {tuple(x.shape)}")
    return found.name


def cross_scan_fn(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    force_torch: bool = False,
) -> Tensor:
    """`cross_scan` under the published signature; `force_torch` is backend "pytorch"."""
    layout = dict(in_channel_first=in_channel_first, out_channel_first=out_channel_first, one_by_one=one_by_one)
    return cross_scan(x, scans, backend="pytorch" if force_torch else None, **layout)


def cross_merge_fn(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    force_torch: bool = False,
) -> Tensor:
    """`cross_merge` under the published signature; `force_torch` is backend "pytorch"."""
    layout = dict(in_channel_first=in_channel_first, out_channel_first=out_channel_first, one_by_one=one_by_one)
    return cross_merge(y, scans, backend="pytorch" if force_torch else None, **layout)
