"""ssd: the state-space dual scan of mamba2, a selective scan with one decay for a whole head of channels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import require
from ..companions import refuse_tangents
from ..selective_scan.arguments import unify, widen
from .arguments import check, chunk_length, limits
from .op import forward

__all__ = ["selective_scan_chunk_fn", "ssd"]

# Products within a chunk grow with its length and those with the state do not; near the state's size they balance.
CHUNK = 64
_PUBLISHED_BACKENDS = {"triton": None, "torch": "chunked"}


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    *,
    z: Tensor | None = None,
    dt_softplus: bool = True,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    chunk_size: int = CHUNK,
    seq_idx: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    return_final_states: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Output y [B, L, H, P] of the scan, and the last state [B, H, P, N] if asked for.

    For head h of group g = h // (H / G), in float32 (float64 for float64 input): the step size
    s = clamp(softplus(dt + dt_bias), *dt_limit); h_t = exp(s_t A) h_{t-1} + s_t x_t B_t^T, a matrix [P, N];
    y_t = h_t C_t + D x_t, times silu(z) if z is given. It equals `selective_scan` with A shared over a head.

    Args:
        x: [B, L, H, P], float32, bfloat16, float16 or float64, any strides.
        dt: [B, L, H] in x's type. A: [H]; A, D, dt_bias and initial_states of any smaller type are used in float32.
        B, C: [B, L, G, N] in x's type, H a multiple of G, 1 <= N <= 256.
        D: [H] or [H, P]. dt_bias: [H]. initial_states: [B, H, P, N]; none is zero.
        z: [B, L, H, P], a gate of any floating type, used in float32.
        dt_softplus: apply softplus (x itself above 20) to dt + dt_bias. dt_limit: bounds of the step size.
        chunk_size: steps that are worked on as one product; the result depends on it by rounding only. Any L works
            with any chunk: the last one is filled up with steps of size 0.
        seq_idx: not supported; sequences of one batch element are scanned by one call each.
        out_dtype: float32 or x's type; None is float32 (float64 for float64 input).
        return_final_states: also return the state after the last step, in float32 (float64 for float64 input).
        backend: None chooses by device; "triton", "chunked" or "reference" insist.

    Under autocast x, dt, B and C of different types are widened to the widest; outside it they must agree.
    Differentiable once in every tensor. Only the inputs are kept for it and, with z, what the gate's own gradient
    takes, the output before it, z and silu(z), each [B, L, H, P] in float32. Works under
    torch.compile, torch.export and torch.vmap.

    Raises:
        ValueError: a wrong rank, shape, type or device, naming the argument and both shapes; an unknown backend;
            seq_idx.
        RuntimeError: a backend that was asked for is absent, with the remedy.

    Source: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
    Space Duality", 2024, section 6.
    """
    if seq_idx is not None:
        raise ValueError(
            "seq_idx: several sequences in one batch element are not supported; scan each with a call of its own"
        )
    sequences = (x, dt, B, C)
    if all(isinstance(t, Tensor) for t in sequences) and any(t.dtype is not x.dtype for t in sequences):
        x, dt, B, C = unify(x.device.type, *sequences)
    check(dict(x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_states=initial_states))
    work = torch.float64 if x.dtype is torch.float64 else torch.float32
    low, high = limits(dt_limit)
    chunk = chunk_length(chunk_size)
    if out_dtype is None:
        out_dtype = work
    elif out_dtype is not x.dtype and out_dtype is not torch.float32:
        raise ValueError(f"out_dtype: expected torch.float32 or x's {x.dtype}, got {out_dtype} for x {tuple(x.shape)}")
    if backend is not None:
        backend = require("ssd", backend, x.device.type).name
        if backend == "triton" and x.dtype is torch.float64:
            raise ValueError(f"x: float64 {tuple(x.shape)} runs on 'chunked' and 'reference' only, not on 'triton'")

    A = widen("A", A, work)
    optional = dict(D=D, dt_bias=dt_bias, initial_states=initial_states)
    D, dt_bias, initial_states = (None if w is None else widen(name, w, work) for name, w in optional.items())
    if D is not None and D.dim() == 1:
        D = D[:, None].expand(-1, x.shape[3])
    inputs = (x, dt, A, B, C, D, dt_bias, initial_states)
    refuse_tangents("ssd", *inputs)
    within = out_dtype if z is None else work
    y, last = forward(*inputs, dt_softplus, low, high, within, chunk, backend or "")
    if z is not None:
        y = (y * F.silu(z.to(work))).to(out_dtype)
    return (y, last) if return_final_states else y


def selective_scan_chunk_fn(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    backend: str | None = None,
) -> Any:
    """Output of `ssd` in x's type under the published signature, and the last state if asked for.

    The published backend name "triton" means the choice by device, and "torch" the chunked path in PyTorch. Unlike the
    published function, dt_limit is honoured everywhere and seq_idx is refused, not ignored.
    """
    return ssd(
        x,
        dt,
        A,
        B,
        C,
        D,
        dt_bias,
        initial_states,
        z=z,
        dt_softplus=dt_softplus,
        dt_limit=dt_limit,
        chunk_size=chunk_size,
        seq_idx=seq_idx,
        out_dtype=x.dtype,
        return_final_states=return_final_states,
        backend=_PUBLISHED_BACKENDS.get(backend, backend) if backend else None,
    )
