"""Checks of the arguments of the selective scan, before anything is launched."""

from __future__ import annotations

import torch
from torch import Tensor

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_STATES = 256


def fits(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> bool:
    """Whether the tensors form one call: the quick answer; `refuse` finds out which does not.

    AttributeError if one is no tensor at all.
    """
    shape, dtype, device = u.shape, u.dtype, u.device
    if len(shape) != 3:
        return False
    batch, channels, length = shape
    shape_B, shape_delta, shape_A = B.shape, delta.shape, A.shape
    return (
        len(shape_B) == 4
        and len(shape_A) == 2
        and len(shape_delta) == 3
        and length > 0
        and channels > 0
        and C.shape == shape_B
        and shape_A[0] == channels
        and 0 < shape_A[1] <= MAX_STATES
        and shape_B[0] == batch
        and shape_B[1] > 0
        and channels % shape_B[1] == 0
        and shape_B[2] == shape_A[1]
        and shape_B[3] == length
        and shape_delta[0] == batch
        and shape_delta[2] == length
        and shape_delta[1] > 0
        and channels % shape_delta[1] == 0
        and (D is None or (D.shape == (channels,) and D.device == device and D.layout is torch.strided))
        and (
            delta_bias is None
            or (
                delta_bias.shape == (shape_delta[1],)
                and delta_bias.device == device
                and delta_bias.layout is torch.strided
            )
        )
        and dtype in INPUT_DTYPES
        and delta.dtype is dtype
        and B.dtype is dtype
        and C.dtype is dtype
        and A.device == device
        and B.device == device
        and C.device == device
        and delta.device == device
        and u.layout is delta.layout is A.layout is B.layout is C.layout is torch.strided
    )


def refuse(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> None:
    """Raise the ValueError that names the first wrong argument, its shape and the one it has to fit."""
    ranks = {"u": (u, 3, "[B, K*D, L]"), "delta": (delta, 3, "[B, DD, L]"), "A": (A, 2, "[K*D, N]"),
             "B": (B, 4, "[B, K, N, L]"), "C": (C, 4, "[B, K, N, L]"), "D": (D, 1, "[K*D]"),
             "delta_bias": (delta_bias, 1, "[DD]")}  # fmt: skip
    for name, (tensor, rank, form) in ranks.items():
        if tensor is None and name in ("D", "delta_bias"):
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: expected a tensor {form}, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name}: expected a strided tensor {form}, got layout {tensor.layout}")
        if tensor.dim() != rank:
            raise ValueError(f"{name}: expected {form}, got shape {_shape(tensor)} beside u {_shape(u)}")

    batch, channels, length = u.shape
    if length == 0 or channels == 0:
        raise ValueError(f"u: expected at least one channel and L >= 1, got {_shape(u)} beside delta {_shape(delta)}")
    _agree("delta", delta, "u", u, delta.shape[0] == batch and delta.shape[2] == length, "[B, DD, L] with u's B and L")
    _agree("delta", delta, "u", u, delta.shape[1] > 0 and channels % max(delta.shape[1], 1) == 0,
           "DD channels that divide u's")  # fmt: skip
    _agree("A", A, "u", u, A.shape[0] == channels, "[K*D, N] with u's channels")
    if not 0 < A.shape[1] <= MAX_STATES:
        raise ValueError(f"A: expected 1 <= N <= {MAX_STATES} states, got {_shape(A)} beside u {_shape(u)}")
    _agree("B", B, "u", u, B.shape[0] == batch and B.shape[3] == length, "[B, K, N, L] with u's B and L")
    _agree("B", B, "u", u, B.shape[1] > 0 and channels % max(B.shape[1], 1) == 0, "K groups that divide u's channels")
    _agree("B", B, "A", A, B.shape[2] == A.shape[1], "[B, K, N, L] with A's N")
    _agree("C", C, "B", B, C.shape == B.shape, "B's shape")
    if D is not None:
        _agree("D", D, "u", u, D.shape[0] == channels, "[K*D] with u's channels")
    if delta_bias is not None:
        _agree("delta_bias", delta_bias, "delta", delta, delta_bias.shape[0] == delta.shape[1], "delta's channels")

    if u.dtype not in INPUT_DTYPES:
        raise ValueError(f"u: expected {', '.join(map(str, INPUT_DTYPES))}, got {u.dtype} {_shape(u)}")
    for name, tensor in {"delta": delta, "B": B, "C": C}.items():
        if tensor.dtype is not u.dtype:
            raise ValueError(
                f"{name}: {tensor.dtype} {_shape(tensor)} beside u {u.dtype} {_shape(u)}; "
                "u, delta, B and C share one type outside autocast"
            )
    for name, (tensor, _, _) in ranks.items():
        if tensor is not None and tensor.device != u.device:
            raise ValueError(f"{name}: {_shape(tensor)} is on {tensor.device} and u {_shape(u)} on {u.device}")


def _agree(name: str, tensor: Tensor, other_name: str, other: Tensor, agree: bool, expected: str) -> None:
    if not agree:
        raise ValueError(f"{name}: expected {expected}, got shape {_shape(tensor)} beside {other_name} {_shape(other)}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def widen(name: str, weight: Tensor, work: torch.dtype) -> Tensor:
    """The weight A, D or delta_bias in the type that the recurrence works in, differentiably."""
    if not weight.dtype.is_floating_point or (weight.dtype is torch.float64 and work is not torch.float64):
        raise ValueError(f"{name}: {weight.dtype} {_shape(weight)} cannot be used in a scan that works in {work}")
    return weight.to(work)


def unify(device: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """u, delta, B, C in the widest of their types under autocast; as they are outside it."""
    if any(not isinstance(t, Tensor) or t.dtype not in INPUT_DTYPES for t in tensors):
        return tensors
    if not torch.is_autocast_enabled(device):
        return tensors
    widest = tensors[0].dtype
    for tensor in tensors[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return tuple(tensor.to(widest) for tensor in tensors)
