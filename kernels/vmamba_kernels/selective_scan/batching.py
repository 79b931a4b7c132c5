"""torch.vmap over the selective scan: the mapped dimension becomes more groups of channels of the same scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

# Position of the channel (or group) axis of each tensor argument and result, which the mapped dimension joins.
FORWARD_AXES = {"u": 1, "delta": 1, "A": 0, "B": 1, "C": 1, "D": 0, "delta_bias": 0}
FORWARD_RESULTS = (1, 1, 3)
BACKWARD_AXES = {"dout": 1, "dlast_state": 1, **FORWARD_AXES, "states": 3}
BACKWARD_RESULTS = (1, 1, 0, 1, 1, 0, 0)


def _fold(tensor: Tensor, mapped: int | None, size: int, axis: int) -> Tensor:
    tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if mapped is None else tensor.movedim(mapped, 0)
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def vmap_rule(op: Callable[..., Any], axes: dict[str, int], result_axes: tuple[int, ...]) -> Callable[..., Any]:
    """The vmap rule of an op whose first arguments have the given channel axes."""
    axis_of = list(axes.values())

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size = info.batch_size
        folded = [
            _fold(arg, mapped, size, axis_of[i]) if isinstance(arg, Tensor) else arg
            for i, (arg, mapped) in enumerate(zip(args, in_dims, strict=True))
        ]
        results = op(*folded)
        unfolded = tuple(
            result.unflatten(axis, (size, result.shape[axis] // size))
            for result, axis in zip(results, result_axes, strict=True)
        )
        return unfolded, result_axes

    return rule
