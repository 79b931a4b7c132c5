"""The arguments of the pooled scan: how backends take them, and their checks before anything is launched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..selective_scan.arguments import fits, refuse
from .tokens import Tokens

MOST_GROUPS = 32


class Inputs(NamedTuple):
    """What a backend scans, in the order of the op's schema; A, D and delta_bias in the working type."""

    u_full: Tensor  # [B, K, D, L]
    u_pooled: Tensor  # [B, K*D, P]
    delta: Tensor  # [B, DD, P]
    A: Tensor  # [K*D, N]
    B: Tensor  # [B, K, N, P]
    C: Tensor  # [B, K, N, P]
    D: Tensor | None  # [K*D]
    delta_bias: Tensor | None  # [DD]
    tokens: Tokens
    reverse: Sequence[bool]
    delta_softplus: bool
    average: bool


def check(
    u_full: Tensor,
    u_pooled: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise the ValueError that names the first wrong argument, its shape and the one it has to fit."""
    try:
        fitting = fits(u_pooled, delta, A, B, C, D, delta_bias)
    except AttributeError:
        fitting = False
    if not fitting:
        try:
            refuse(u_pooled, delta, A, B, C, D, delta_bias)
        except ValueError as error:
            raise ValueError(_of_the_pooled_sequence(str(error))) from None
    form = "[B, K*D, L] or [B, K, D, L]"
    if not isinstance(u_full, Tensor):
        raise ValueError(f"u_full: expected a tensor {form}, got {type(u_full).__name__}")
    if u_full.layout is not torch.strided:
        raise ValueError(f"u_full: expected a strided tensor {form}, got layout {u_full.layout}")
    groups, channels = B.shape[1], u_pooled.shape[1]
    shape, beside = tuple(u_full.shape), f"beside u_pooled {tuple(u_pooled.shape)}"
    if u_full.dim() not in (3, 4):
        raise ValueError(f"u_full: expected {form}, got shape {shape} {beside}")
    if u_full.dim() == 4 and shape[1] != groups:
        raise ValueError(f"u_full: expected {form} with B's K = {groups}, got shape {shape} {beside}")
    if shape[0] != u_pooled.shape[0] or shape[1] * (shape[2] if u_full.dim() == 4 else 1) != channels:
        raise ValueError(f"u_full: expected {form} with u_pooled's B and channels, got shape {shape} {beside}")
    if shape[-1] == 0:
        raise ValueError(f"u_full: expected L >= 1, got shape {shape} {beside}")
    if u_full.dtype is not u_pooled.dtype:
        raise ValueError(
            f"u_full: {u_full.dtype} {shape} beside u_pooled {u_pooled.dtype} {tuple(u_pooled.shape)}; "
            "they share one type outside autocast"
        )
    if u_full.device != u_pooled.device:
        raise ValueError(f"u_full: {shape} is on {u_full.device} and u_pooled on {u_pooled.device}")
    if delta.shape[1] % groups:
        raise ValueError(
            f"delta: expected a multiple of B's K = {groups} channels, got shape {tuple(delta.shape)} beside B "
            f"{tuple(B.shape)}"
        )


def _of_the_pooled_sequence(message: str) -> str:
    """What the selective scan says of u and L, of u_pooled and P."""
    return re.sub(r"\bL\b", "P", re.sub(r"\bu\b", "u_pooled", message))


def directions(reverse: bool | Sequence[bool], groups: int, average: bool) -> tuple[bool, ...]:
    """One bool a group."""
    if groups > MOST_GROUPS:
        raise ValueError(f"B: expected at most {MOST_GROUPS} groups, got K = {groups}")
    if average and groups > 2:
        raise ValueError(f"average: expected K of 1 or 2 groups, got B with K = {groups}")
    if isinstance(reverse, bool):
        return (reverse,) * groups
    reverse = tuple(reverse)
    if len(reverse) != groups or not all(isinstance(back, bool) for back in reverse):
        raise ValueError(f"reverse: expected a bool, or one for each of K = {groups} groups, got {reverse}")
    return reverse
