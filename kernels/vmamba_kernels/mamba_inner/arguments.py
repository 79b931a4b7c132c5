"""Checks of the arguments of mamba_inner, before anything is launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..causal_conv1d.arguments import MAX_GROUPS, MAX_WIDTH
from ..selective_scan.arguments import MAX_STATES


def check(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_weight: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: int,
) -> None:
    """Raise the ValueError that names the first wrong argument, its shape and the one it has to fit."""
    forms: dict[str, tuple[Any, int, str]] = {
        "xz": (xz, 3, "[B, L, 2E]"), "conv_weight": (conv_weight, 3, "[G, E, W]"),
        "conv_bias": (conv_bias, 2, "[G, E]"), "x_weight": (x_weight, 3, "[G, R+2N, E]"),
        "dt_weight": (dt_weight, 3, "[G, E, R]"), "A": (A, 2, "[G*E, N]"), "D": (D, 1, "[G*E]"),
        "delta_bias": (delta_bias, 1, "[G*E]"),
    }  # fmt: skip
    present = {name: form for name, form in forms.items() if form[0] is not None or name != "conv_bias"}
    for name, (tensor, rank, form) in present.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: expected a tensor {form}, got {type(tensor).__name__}")
        if tensor.dim() != rank or tensor.layout is not torch.strided:
            raise ValueError(f"{name}: expected {form}, got shape {_shape(tensor)} beside xz {_shape(xz)}")
    _, length, both = xz.shape
    groups, channels, width = conv_weight.shape
    if both != 2 * channels or channels == 0 or length == 0:
        raise ValueError(
            f"xz: expected [B, L, 2E], E, L >= 1, got {_shape(xz)} beside conv_weight [G, E, W] {_shape(conv_weight)}"
        )
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"conv_weight: expected 1 <= W <= {MAX_WIDTH}, got {_shape(conv_weight)} for xz {_shape(xz)}")
    if groups != directions or not 0 < groups <= MAX_GROUPS:
        raise ValueError(
            f"reverse: expected the directions of G <= {MAX_GROUPS} groups, got {directions} beside conv_weight "
            f"{_shape(conv_weight)}"
        )
    rank, states = dt_weight.shape[2], A.shape[1]
    if not 0 < states <= MAX_STATES or rank == 0:
        raise ValueError(
            f"A: expected 1 <= N <= {MAX_STATES} states and a rank of at least 1, got {_shape(A)} beside dt_weight "
            f"{_shape(dt_weight)}"
        )
    shapes = {
        "conv_bias": (groups, channels),
        "x_weight": (groups, rank + 2 * states, channels),
        "dt_weight": (groups, channels, rank),
        "A": (groups * channels, states),
        "D": (groups * channels,),
        "delta_bias": (groups * channels,),
    }
    for name, (tensor, _, form) in present.items():
        if name in shapes and tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{name}: expected {form} = {shapes[name]}, got shape {_shape(tensor)} beside conv_weight "
                f"{_shape(conv_weight)}, dt_weight {_shape(dt_weight)} and A {_shape(A)}"
            )
        if tensor.dtype is not xz.dtype or tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name}: expected float32 or float64 as xz, got {tensor.dtype} for xz {xz.dtype} {_shape(xz)}"
            )
        if tensor.device != xz.device:
            raise ValueError(f"{name}: {_shape(tensor)} is on {tensor.device} and xz {_shape(xz)} on {xz.device}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
