"""ss2d: the two-dimensional selective scan of VMamba as one operator, image in and image out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import constant_in_graphs, names, require
from ..companions import refuse_tangents
from ..cross_scan.orders import find_order
from ..selective_scan.arguments import unify, widen
from .arguments import check
from .op import backend_for, forward

__all__ = ["fuses", "ss2d"]


def ss2d(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    order: str | int = "cross2d",
    channel_first: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """The sum y [B, H, W, C], or [B, C, H, W] if `channel_first`, of the scans of an image along K directions.

    With u, dt, B, C the sequences that direction k reads from x and from group k of x_dbl, in float32 (float64 for
    float64 input): delta = softplus(dt_weight dt + delta_bias); h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l,
    h_0 = 0; y_l = <C_l, h_l> + D u_l, put back where u_l was read. It equals cross_scan, the projection,
    `selective_scan` and cross_merge in turn, without the copies.

    Args:
        x: [B, H, W, C], or [B, C, H, W] if `channel_first`; float32, bfloat16, float16 or float64, any strides.
            Stored with the channels side by side is fastest.
        x_dbl: [B, H, W, K*(R+2N)], or [B, K*(R+2N), H, W], in x's type: for each direction R step-size inputs, N of B
            and N of C, at the position of the image they come from. One product of x with the flattened
            x_proj_weight [K, R+2N, C] gives it.
        dt_weight: [K, C, R]. A: [K*C, N], 1 <= N <= 256. D, delta_bias: [K*C]. Any smaller type is used in float32.
        order: a name of `list_scan_orders()`, or a published integer, of K directions.
        out_dtype: float32 or x's type; None is float32 (float64 for float64 input).
        backend: None chooses by device; "cpu", "cuda", "triton", "unfused" or "reference" insist.

    Under autocast x and x_dbl of different types are widened to the widest; outside it they must agree. Differentiable
    once in every tensor; the inputs and one state per chunk of steps are saved for the backward, and nothing else.
    Works under torch.compile, torch.export with dynamic H and W, and torch.vmap.

    Raises:
        ValueError: a wrong rank, shape, type or device, naming the argument and both shapes; an unknown order or
            backend; on "cuda" an N and R too large for the GPU's shared memory, where "triton" and "unfused" go on.
        RuntimeError: a backend that was asked for is absent, with the remedy.

    Source: Liu et al., "VMamba: Visual State Space Model", 2024, section 4.2.
    """
    found = find_order(order)
    if isinstance(x, Tensor) and isinstance(x_dbl, Tensor) and x.dtype is not x_dbl.dtype:
        x, x_dbl = unify(x.device.type, x, x_dbl)
    check(x, x_dbl, dt_weight, A, D, delta_bias, found.sequences, found.name, channel_first)
    dtype = x.dtype
    work = torch.float64 if dtype is torch.float64 else torch.float32
    dt_weight, A = widen("dt_weight", dt_weight, work), widen("A", A, work)
    D = None if D is None else widen("D", D, work)
    delta_bias = None if delta_bias is None else widen("delta_bias", delta_bias, work)
    if out_dtype is None:
        out_dtype = work
    elif out_dtype is not dtype and out_dtype is not torch.float32:
        raise ValueError(f"out_dtype: expected torch.float32 or x's {dtype}, got {out_dtype} for x {tuple(x.shape)}")
    if backend is not None:
        backend = require("ss2d", backend, x.device.type).name
        if dtype is torch.float64 and backend != "reference":
            raise ValueError(f"x: float64 {tuple(x.shape)} runs on backend 'reference' only, not on {backend!r}")
    tensors = (x, x_dbl, dt_weight, A, D, delta_bias)
    refuse_tangents("ss2d", *tensors)
    save_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return forward(*tensors, found.name, channel_first, out_dtype, save_states, backend or "")[0]


@constant_in_graphs
def fuses(dtype: torch.dtype, device: str, backend: str | None = None) -> bool:
    """Whether `ss2d` is more than its pieces for tensors of a type on a device type, so that a model should call it.

    True if a kernel of its own serves them or, with a backend named, if ss2d has a backend of that name.
    """
    if backend is not None:
        return backend in names("ss2d")
    return backend_for(dtype, device) not in ("unfused", "reference")
