"""The arguments of ssd: how backends take them, and their checks before anything is launched."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..selective_scan.arguments import INPUT_DTYPES, MAX_STATES


class Inputs(NamedTuple):
    """What a backend scans, in the order of the op's schema; A, D, dt_bias and initial_states in the working type."""

    x: Tensor  # [B, L, H, P]
    dt: Tensor  # [B, L, H]
    A: Tensor  # [H]
    B: Tensor  # [B, L, G, N]
    C: Tensor  # [B, L, G, N]
    D: Tensor | None  # [H, P]
    dt_bias: Tensor | None  # [H]
    initial_states: Tensor | None  # [B, H, P, N]
    dt_softplus: bool
    dt_min: float
    dt_max: float


# Of x, dt, A, B, C, D, dt_bias, initial_states, the last three empty if absent.
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

FORMS = {
    "x": "[B, L, H, P]",
    "dt": "[B, L, H]",
    "A": "[H]",
    "B": "[B, L, G, N]",
    "C": "[B, L, G, N]",
    "D": "[H] or [H, P]",
    "z": "[B, L, H, P]",
    "dt_bias": "[H]",
    "initial_states": "[B, H, P, N]",
}
OPTIONAL = ("D", "z", "dt_bias", "initial_states")


def check(tensors: dict[str, Any]) -> None:
    """Raise the ValueError that names the first wrong tensor, its shape and the one it has to fit."""
    x = tensors["x"]
    for name, tensor in tensors.items():
        if tensor is None and name in OPTIONAL:
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name}: expected a tensor {FORMS[name]}, got {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name}: expected a strided tensor {FORMS[name]}, got layout {tensor.layout}")
        ranks = (1, 2) if name == "D" else (FORMS[name].count(",") + 1,)
        if tensor.dim() not in ranks:
            raise ValueError(f"{name}: expected {FORMS[name]}, got shape {_shape(tensor)} beside x {_shape(x)}")

    batch, length, heads, width = x.shape
    if length == 0 or heads == 0 or width == 0:
        raise ValueError(f"x: expected L, H and P of at least 1, got {_shape(x)} beside dt {_shape(tensors['dt'])}")
    _agree("dt", tensors, "x", tensors["dt"].shape == (batch, length, heads), "[B, L, H] with x's sizes")
    _agree("A", tensors, "x", tensors["A"].shape == (heads,), "[H] with x's heads")
    joined, steps, groups, d_state = tensors["B"].shape
    _agree("B", tensors, "x", joined == batch and steps == length, "[B, L, G, N] with x's B and L")
    _agree("B", tensors, "x", groups > 0 and heads % max(groups, 1) == 0, "G groups that divide x's heads")
    if not 0 < d_state <= MAX_STATES:
        raise ValueError(f"B: expected 1 <= N <= {MAX_STATES} states, got {_shape(tensors['B'])} beside x {_shape(x)}")
    _agree("C", tensors, "B", tensors["C"].shape == tensors["B"].shape, "B's shape")
    full = (batch, length, heads, width)
    shapes = {"z": full, "dt_bias": (heads,), "initial_states": (batch, heads, width, d_state)}
    for name, shape in shapes.items():
        if tensors[name] is not None:
            _agree(name, tensors, "x", tensors[name].shape == shape, f"{FORMS[name]} with x's sizes and B's N")
    D = tensors["D"]
    if D is not None:
        _agree("D", tensors, "x", D.shape == (heads, width)[: D.dim()], "[H] or [H, P] with x's sizes")

    if x.dtype not in INPUT_DTYPES:
        raise ValueError(f"x: expected {', '.join(map(str, INPUT_DTYPES))}, got {x.dtype} {_shape(x)}")
    for name in ("dt", "B", "C"):
        tensor = tensors[name]
        if tensor.dtype is not x.dtype:
            raise ValueError(
                f"{name}: {tensor.dtype} {_shape(tensor)} beside x {x.dtype} {_shape(x)}; "
                "x, dt, B and C share one type outside autocast"
            )
    z = tensors["z"]
    if z is not None and z.dtype not in INPUT_DTYPES:
        raise ValueError(f"z: expected {', '.join(map(str, INPUT_DTYPES))}, got {z.dtype} {_shape(z)}, x {_shape(x)}")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: {_shape(tensor)} is on {tensor.device} and x {_shape(x)} on {x.device}")


def limits(dt_limit: Any) -> tuple[float | None, float | None]:
    """The bounds of the step size as two floats, None for one that is infinite."""
    if not isinstance(dt_limit, (tuple, list)) or len(dt_limit) != 2:
        raise ValueError(f"dt_limit: expected two numbers (low, high), got {dt_limit!r}")
    low, high = dt_limit
    if not all(isinstance(bound, (int, float)) for bound in dt_limit):
        raise ValueError(f"dt_limit: expected two numbers (low, high), got {dt_limit!r}")
    if not low <= high or low == math.inf or high == -math.inf:
        raise ValueError(f"dt_limit: expected low <= high with a number between them, got {dt_limit!r}")
    lowest, highest = float(low), float(high)
    return None if lowest == -math.inf else lowest, None if highest == math.inf else highest


def chunk_length(chunk_size: Any) -> int:
    """The number of steps of a chunk, as an int."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size: expected an int of at least 1, got {chunk_size!r}")
    return chunk_size


def _agree(name: str, tensors: dict[str, Any], other: str, agree: bool, expected: str) -> None:
    if not agree:
        raise ValueError(
            f"{name}: expected {expected}, got shape {_shape(tensors[name])} beside {other} {_shape(tensors[other])}"
        )


def _shape(tensor: Any) -> Any:
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else tensor
