"""The pooled scan: a selective scan over a pooled sequence whose outputs are given back to the tokens, with skip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import exporting, require
from ..companions import refuse_tangents
from ..selective_scan.arguments import unify, widen
from .arguments import check, directions
from .op import forward
from .pool import pool_tokens
from .tokens import token_axes

__all__ = ["pool_tokens", "pooled_scan"]


def pooled_scan(
    u_full: Tensor,
    u_pooled: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    grid: Sequence[int] | None = None,
    pooled_axes: int | Sequence[int] = -1,
    reverse: bool | Sequence[bool] = False,
    average: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Output y [B, K*D, L]: the scan of P pooled steps, each output given to its c = L/P tokens, plus D * u_full.

    With z = selective_scan(u_pooled, delta, A, B, C, None, delta_bias, delta_softplus), y_l = z_p(l) + D u_full_l for a
    token l of the pooled step p(l), in float32 (float64 for float64 input).

    Args:
        u_full: [B, K*D, L] or, where the groups lie apart, [B, K, D, L]; float32, bfloat16, float16 or float64. Stored
            with the channels side by side is fastest, then the tokens; other strides are copied.
        u_pooled: [B, K*D, P], and delta: [B, DD, P], in u_full's type; DD divides K*D and is a multiple of K.
        A: [K*D, N], 1 <= N <= 256. A, D and delta_bias of any smaller type are used in float32.
        B, C: [B, K, N, P] in u_full's type, 1 <= K <= 32. D: [K*D]. delta_bias: [DD].
        delta_softplus: apply softplus (x itself above 20) to delta + delta_bias.
        grid: sizes of the axes of the tokens, of product L; None: (P, c), the c tokens of a step side by side.
        pooled_axes: the axes of the grid that were pooled. The steps are those of the other axes in row-major order:
            of an image (H, W), -1 pools its rows to P = H, and 0 its columns to P = W, where it lies.
        reverse: whether a group walks the pooled sequence from its end; one bool, or one for each group. Two groups
            with (False, True) are a bidirectional scan in which nothing is flipped.
        average: return the mean over the K <= 2 groups, [B, D, L].
        out_dtype: float32 or u_full's type; None is float32 (float64 for float64 input).
        backend: None chooses by device; "cpu", "cuda", "triton", "unfused" or "reference" insist.

    Under autocast tensors of different types are widened to the widest; outside it they must agree. Differentiable once
    in every tensor; the inputs and one state per chunk of steps are saved for the backward, and nothing else. Works
    under torch.compile, torch.export with dynamic sizes, and torch.vmap.

    Raises:
        ValueError: a wrong rank, shape, type, device or grid, naming the argument and both shapes; an unknown backend.
        RuntimeError: a backend that was asked for is absent, with the remedy.

    Source: Kapse et al., "Fast Vision Mamba", 2025, section 3 (arXiv 2502.00594).
    """
    tensors = (u_full, u_pooled, delta, B, C)
    if all(isinstance(t, Tensor) for t in tensors) and any(t.dtype is not u_full.dtype for t in tensors):
        u_full, u_pooled, delta, B, C = unify(u_full.device.type, *tensors)
    check(u_full, u_pooled, delta, A, B, C, D, delta_bias)
    reversed_groups = directions(reverse, B.shape[1], average)
    tokens = token_axes(u_full.shape[-1], u_pooled.shape[-1], grid, pooled_axes)
    if torch.jit.is_tracing():  # which takes sizes for tensors, and has no list of such: they become constants
        tokens = (int(tokens[0]), int(tokens[1]), int(tokens[2]), int(tokens[3]))
    dtype = u_full.dtype
    work = torch.float64 if dtype is torch.float64 else torch.float32
    A = widen("A", A, work)
    D = None if D is None else widen("D", D, work)
    delta_bias = None if delta_bias is None else widen("delta_bias", delta_bias, work)
    if out_dtype is None:
        out_dtype = work
    elif out_dtype is not dtype and out_dtype is not torch.float32:
        raise ValueError(
            f"out_dtype: expected torch.float32 or u_full's {dtype}, got {out_dtype} for u_full {tuple(u_full.shape)}"
        )
    if backend is not None:
        backend = require("pooled_scan", backend, u_full.device.type).name
        if dtype is torch.float64 and backend != "reference":
            raise ValueError(
                f"u_full: float64 {tuple(u_full.shape)} runs on backend 'reference' only, not on {backend!r}"
            )
    if u_full.dim() == 3:
        u_full = u_full.unflatten(1, (B.shape[1], u_full.shape[1] // B.shape[1]))
    present = (u_full, u_pooled, delta, A, B, C, D, delta_bias)
    refuse_tangents("pooled_scan", *present)
    # An exported graph computes the states again if it is differentiated: their number would pin its sizes.
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in present)
    save_states = differentiated and not exporting()
    options = (tokens, reversed_groups, delta_softplus, average, out_dtype, save_states, backend or "")
    return forward(*present, *options)[0]
