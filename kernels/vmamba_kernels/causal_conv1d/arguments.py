"""Checks of the arguments of the causal convolution, before anything is launched, and their uniform shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..selective_scan.arguments import INPUT_DTYPES

MAX_WIDTH = 8
MAX_GROUPS = 32
ACTIVATIONS = {None: False, "silu": True, "swish": True}
_FORM = "[C, W], [G, C, W] or [C, 1, W]"


def grouped(x: Tensor, weight: Tensor, reverse: bool | Sequence[bool]) -> tuple[int, int]:
    """G groups and C channels of each.

    A weight [C, 1, W] over C channels is one group, unless C directions say that it is C groups of one channel.
    """
    if weight.dim() == 2:
        return 1, weight.shape[0]
    groups, channels = weight.shape[:2]
    asked = 1 if isinstance(reverse, bool) else len(reverse)
    if channels == 1 and groups == x.shape[1] and asked == 1:
        return 1, groups
    return groups, channels


def directions(reverse: bool | Sequence[bool], groups: int) -> list[bool]:
    """Whether each group is reversed."""
    return [reverse] * groups if isinstance(reverse, bool) else [bool(r) for r in reverse]


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    reverse: bool | Sequence[bool],
) -> tuple[Tensor, Tensor | None, bool]:
    """weight as [G, C, W], bias as [G, C] or None, and whether there is a SiLU.

    Raises the ValueError that names the first wrong argument, its shape and the one it has to fit.
    """
    forms = {"x": (x, (3,), "[B, C, L] or [B, G*C, L]"), "weight": (weight, (2, 3), _FORM),
             "bias": (bias, (1, 2), "[G*C] or [G, C]")}  # fmt: skip
    for name, (tensor, ranks, form) in forms.items():
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: expected a tensor {form}, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name}: expected a strided tensor {form}, got layout {tensor.layout}")
        if tensor.dim() not in ranks:
            raise ValueError(f"{name}: expected {form}, got shape {_shape(tensor)} beside x {_shape(x)}")
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"x: expected at least one channel and L >= 1, got {_shape(x)} beside weight {_shape(weight)}")
    groups, channels = grouped(x, weight, reverse)
    if not 0 < groups <= MAX_GROUPS:
        raise ValueError(f"weight: expected 1 <= G <= {MAX_GROUPS}, got {_shape(weight)} beside x {_shape(x)}")
    if channels == 0 or x.shape[1] not in (channels, groups * channels):
        raise ValueError(
            f"weight: expected {_FORM} with x's C channels, or a Gth of them, got shape {_shape(weight)} beside x "
            f"{_shape(x)}"
        )
    if not 0 < weight.shape[-1] <= MAX_WIDTH:
        raise ValueError(f"weight: expected 1 <= W <= {MAX_WIDTH}, got {_shape(weight)} beside x {_shape(x)}")
    if bias is not None and tuple(bias.shape) not in ((groups * channels,), (groups, channels)):
        raise ValueError(
            f"bias: expected [{groups * channels}] or [{groups}, {channels}], got shape {_shape(bias)} beside weight "
            f"{_shape(weight)}"
        )
    if not isinstance(reverse, bool) and len(reverse) != groups:
        raise ValueError(
            f"reverse: expected a bool or {groups} of them, got {reverse!r} beside weight {_shape(weight)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: {activation!r} is not one of None, 'silu', 'swish'")
    if x.dtype not in INPUT_DTYPES:
        raise ValueError(f"x: expected {', '.join(map(str, INPUT_DTYPES))}, got {x.dtype} {_shape(x)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: {_shape(tensor)} is on {tensor.device} and x {_shape(x)} on {x.device}")
    filters = weight.reshape(groups, channels, weight.shape[-1])
    return filters, None if bias is None else bias.reshape(groups, channels), ACTIVATIONS[activation]


def widen(name: str, weight: Tensor, x: Tensor) -> Tensor:
    """The weight or bias in the type that the sums are taken in, differentiably."""
    work = torch.float64 if x.dtype is torch.float64 else torch.float32
    if not weight.dtype.is_floating_point or (weight.dtype is torch.float64 and work is not torch.float64):
        raise ValueError(
            f"{name}: {weight.dtype} {_shape(weight)} cannot be used beside x {x.dtype} {_shape(x)}, whose sums are "
            f"taken in {work}"
        )
    return weight.to(work)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
