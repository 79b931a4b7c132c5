"""The arguments of ss2d: how backends take them, and their checks before anything is launched."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..selective_scan.arguments import INPUT_DTYPES, MAX_STATES
from .layout import sizes


class Inputs(NamedTuple):
    """What a backend scans, in the order of the op's schema; the weights in the working type."""

    x: Tensor  # [B, H, W, C], or [B, C, H, W] if channel_first
    x_dbl: Tensor  # [B, H, W, K*(R+2N)], or [B, K*(R+2N), H, W]
    dt_weight: Tensor  # [K, C, R]
    A: Tensor  # [K*C, N]
    D: Tensor | None  # [K*C]
    delta_bias: Tensor | None  # [K*C]
    order: str
    channel_first: bool


# Of x, x_dbl, dt_weight, A, D, delta_bias, the last two empty if absent, in the arguments' types.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def check(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    directions: int,
    order: str,
    channel_first: bool,
) -> None:
    """Raise the ValueError that names the first wrong argument, its shape and the one it has to fit."""
    image = "[B, C, H, W]" if channel_first else "[B, H, W, C]"
    projected = "[B, K*(R+2N), H, W]" if channel_first else "[B, H, W, K*(R+2N)]"
    forms = {"x": (x, 4, image), "x_dbl": (x_dbl, 4, projected), "dt_weight": (dt_weight, 3, "[K, C, R]"),
             "A": (A, 2, "[K*C, N]"), "D": (D, 1, "[K*C]"), "delta_bias": (delta_bias, 1, "[K*C]")}  # fmt: skip
    for name, (tensor, rank, form) in forms.items():
        if tensor is None and name in ("D", "delta_bias"):
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: expected a tensor {form}, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name}: expected a strided tensor {form}, got layout {tensor.layout}")
        if tensor.dim() != rank:
            raise ValueError(f"{name}: expected {form}, got shape {_shape(tensor)} beside x {_shape(x)}")

    batch, channels, H, W = sizes(x, channel_first)
    if channels == 0 or H == 0 or W == 0:
        raise ValueError(
            f"x: expected C, H and W of at least 1 in {image}, got {_shape(x)} beside x_dbl {_shape(x_dbl)}"
        )
    K, C, R = dt_weight.shape
    if directions != K:
        raise ValueError(f"dt_weight: order {order!r} needs K = {directions} in [K, C, R], got {_shape(dt_weight)}")
    _agree("dt_weight", dt_weight, "x", x, channels == C and R > 0, "[K, C, R] with x's C and R >= 1")
    _agree("A", A, "x", x, A.shape[0] == K * C, f"[K*C, N] with K = {K} and x's C")
    N = A.shape[1]
    if not 0 < N <= MAX_STATES:
        raise ValueError(f"A: expected 1 <= N <= {MAX_STATES} states, got {_shape(A)} beside x {_shape(x)}")
    joined, rows, p_H, p_W = sizes(x_dbl, channel_first)
    _agree("x_dbl", x_dbl, "x", x, joined == batch and p_H == H and p_W == W, f"{projected} with x's B, H and W")
    if rows != K * (R + 2 * N):
        raise ValueError(
            f"x_dbl: expected {projected} with {K * (R + 2 * N)} = {K} * ({R} + 2 * {N}) rows, got shape "
            f"{_shape(x_dbl)} beside dt_weight {_shape(dt_weight)} and A {_shape(A)}"
        )
    for name, weight in (("D", D), ("delta_bias", delta_bias)):
        if weight is not None:
            _agree(name, weight, "A", A, weight.shape[0] == K * C, "[K*C] with A's channels")

    if x.dtype not in INPUT_DTYPES:
        raise ValueError(f"x: expected {', '.join(map(str, INPUT_DTYPES))}, got {x.dtype} {_shape(x)}")
    if x_dbl.dtype is not x.dtype:
        raise ValueError(
            f"x_dbl: {x_dbl.dtype} {_shape(x_dbl)} beside x {x.dtype} {_shape(x)}; they share one type outside autocast"
        )
    for name, (tensor, _, _) in forms.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: {_shape(tensor)} is on {tensor.device} and x {_shape(x)} on {x.device}")


def _agree(name: str, tensor: Tensor, other_name: str, other: Tensor, agree: bool, expected: str) -> None:
    if not agree:
        raise ValueError(f"{name}: expected {expected}, got shape {_shape(tensor)} beside {other_name} {_shape(other)}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
