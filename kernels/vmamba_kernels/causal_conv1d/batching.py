"""torch.vmap over the causal convolution: the mapped dimension becomes more channels of every group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def _first(tensor: Tensor, mapped: int | None, size: int) -> Tensor:
    """The tensor with the mapped dimension, or repeats of itself, in front."""
    return tensor.unsqueeze(0).expand(size, *tensor.shape) if mapped is None else tensor.movedim(mapped, 0)


def _join(tensor: Tensor, parts: int) -> Tensor:
    """[S, n, parts*C, m] -> [n, parts*S*C, m]."""
    tensor = tensor.unflatten(2, (parts, tensor.shape[2] // parts))
    return tensor.movedim(0, 2).flatten(1, 3)


def _split(tensor: Tensor, parts: int, size: int) -> Tensor:
    """The reverse of `_join`."""
    tensor = tensor.unflatten(1, (parts, size, tensor.shape[1] // (parts * size)))
    return tensor.movedim(2, 0).flatten(2, 3)


def vmap_rule(op: Callable[..., Any], backward: bool) -> Callable[..., Any]:
    """The vmap rule of the forward op, or of the backward op, whose first argument is the gradient of the output."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        count = 4 if backward else 3
        given = [None if a is None else _first(a, d, size) for a, d in zip(args[:count], in_dims)]
        *dy, x, weight, bias = given
        assert x is not None and weight is not None
        groups, channels = weight.shape[1:3]
        held = x.shape[2] // channels
        joined: list[Tensor | None] = [_join(t, groups) for t in dy if t is not None]
        joined += [_join(x, held), _join(weight, 1)]
        joined.append(None if bias is None else _join(bias.unsqueeze(3), 1).squeeze(2))
        results = op(*joined, *args[count:])
        if not backward:
            return _split(results, groups, size), 0
        dx, dweight, dbias = results
        dbias = dbias.new_empty(size, 0) if bias is None else _split(dbias.unsqueeze(2), 1, size).squeeze(3)
        return (_split(dx, held, size), _split(dweight, 1, size), dbias), (0, 0, 0)

    return rule
