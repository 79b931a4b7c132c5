"""The selective scan: u, delta, A, B, C -> y, along one axis of length L."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import require
from ..companions import refuse_tangents
from .arguments import fits, refuse, unify, widen
from .op import by_device, cpu_library, cuda_library, on_reference, on_triton

__all__ = ["selective_scan", "selective_scan_fn"]

_PUBLISHED_BACKENDS = {"oflex": None, "core": None, "mamba": None, "torch": "reference"}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    out_dtype: torch.dtype | None = None,
    return_last_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Output y [B, K*D, L] of the scan, and the last state [B, K*D, N] if asked for.

    For channel c of group k = c // D, in float32 (float64 for float64 input):
    dt = softplus(delta + delta_bias); h_l = exp(dt_l A) h_{l-1} + dt_l B_l u_l, h_0 = 0; y_l = <C_l, h_l> + D u_l.

    Args:
        u: [B, K*D, L], float32, bfloat16, float16 or float64. Any strides; storing the channels side by side
            (stride 1 on axis 1) is fastest, then time side by side; others are copied.
        delta: [B, DD, L] in u's type, K*D a multiple of DD: channel c uses delta channel c // (K*D / DD).
        A: [K*D, N], 1 <= N <= 256. A, D and delta_bias of any smaller type are used in float32.
        B, C: [B, K, N, L] in u's type, K*D a multiple of K.
        D: [K*D]. delta_bias: [DD].
        delta_softplus: apply softplus (x itself above 20) to delta + delta_bias.
        out_dtype: float32 or u's type; None is float32 (float64 for float64 input).
        return_last_state: also return the state after the last step, in float32 (float64 for float64 input).
        backend: None chooses by device; "reference", "cpu", "cuda" or "triton" insist.

    Under autocast u, delta, B and C of different types are widened to the widest; outside it they must agree.
    Differentiable once in every tensor; works under torch.compile, torch.export and torch.vmap.

    Raises:
        ValueError: a wrong rank, shape, type or device, naming the argument and both shapes; an unknown backend.
        RuntimeError: a backend that was asked for is absent, with the remedy.

    Source: Gu and Dao, "Mamba", 2023, section 3; grouped as in Liu et al., "VMamba", 2024, section 4.
    """
    try:
        fitting = fits(u, delta, A, B, C, D, delta_bias)
    except AttributeError:
        fitting = False
    if not fitting:
        if isinstance(u, Tensor):
            u, delta, B, C = unify(u.device.type, u, delta, B, C)
        refuse(u, delta, A, B, C, D, delta_bias)
    dtype = u.dtype
    work = torch.float64 if dtype is torch.float64 else torch.float32
    if A.dtype is not work:
        A = widen("A", A, work)
    if D is not None and D.dtype is not work:
        D = widen("D", D, work)
    if delta_bias is not None and delta_bias.dtype is not work:
        delta_bias = widen("delta_bias", delta_bias, work)
    if out_dtype is None:
        out_dtype = work
    elif out_dtype is not dtype and out_dtype is not torch.float32:
        raise ValueError(f"out_dtype: expected torch.float32 or u's {dtype}, got {out_dtype} for u {tuple(u.shape)}")

    scan = by_device
    device = u.device.type
    if backend is not None:
        name = require("selective_scan", backend, device).name
        scan = {"reference": on_reference, "triton": on_triton}.get(name, by_device)
        if name != "reference" and dtype is torch.float64:
            raise ValueError(f"u: float64 {tuple(u.shape)} runs on backend 'reference' only, not on {backend!r}")
    elif dtype is torch.float64 and {"cpu": cpu_library, "cuda": cuda_library}.get(device, cpu_library).loaded:
        scan = on_reference
    save_states = torch.is_grad_enabled() and (
        u.requires_grad
        or delta.requires_grad
        or A.requires_grad
        or B.requires_grad
        or C.requires_grad
        or (D is not None and D.requires_grad)
        or (delta_bias is not None and delta_bias.requires_grad)
    )
    refuse_tangents("selective_scan", u, delta, A, B, C, D, delta_bias)
    out, last_state, _ = scan(u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype, save_states)
    return (out, last_state) if return_last_state else out


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Output of `selective_scan` under the published signature: float32 if `oflex`, else in u's type.

    The published backend names "oflex", "core" and "mamba" mean the choice by device, and "torch" the reference.
    """
    if backend is not None:
        backend = _PUBLISHED_BACKENDS.get(backend, backend)
    out_dtype = None if oflex else u.dtype
    out = selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype=out_dtype, backend=backend)
    assert isinstance(out, Tensor)
    return out
