"""The MACs of a layer from its sizes: one rule per kind of layer.

A rule takes the layer, the shape of its first input and that of its output, and returns the MACs of what the layer
itself computes; the layers inside it have their own rules and count for themselves when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from vmamba.counting.operators import scan_macs
from vmamba.models.layers import Mlp
from vmamba.models.ss2d import SS2D
from vmamba.models.vim_mixer import VimMixer

Count = Callable[[Any, Sequence[int], Sequence[int]], int]


@dataclass(frozen=True)
class Rule:
    """The count of a kind of layer; `whole` if it includes the layers inside, which then do not count themselves.

    With `by_operators` the operators that the layer itself calls count instead.
    """

    count: Count
    whole: bool = False
    by_operators: bool = False


_RULES: dict[type[nn.Module], Rule] = {}


def rule(*kinds: type[nn.Module], whole: bool = False) -> Callable[[Count], Count]:
    """Return a decorator that makes a function (layer, input shape, output shape) -> MACs the rule of `kinds`.

    Subclasses take the rule of their nearest base that has one.
    """

    def register(count: Count) -> Count:
        _RULES.update(dict.fromkeys(kinds, Rule(count, whole)))
        return count

    return register


def count_by_operators(*kinds: type[nn.Module]) -> None:
    """Let layers of `kinds` count by the operators that they call themselves, `vmamba.counting.operators`."""
    _RULES.update(dict.fromkeys(kinds, Rule(lambda layer, x, y: 0, by_operators=True)))


def rule_of(layer: nn.Module) -> Rule | None:
    """Return the rule of a layer, None where its kind has none."""
    return next((_RULES[kind] for kind in type(layer).__mro__ if kind in _RULES), None)


@rule(nn.Linear)
def linear(layer: nn.Linear, x: Sequence[int], y: Sequence[int]) -> int:
    return prod(y) * layer.in_features


@rule(_ConvNd)
def convolution(layer: _ConvNd, x: Sequence[int], y: Sequence[int]) -> int:
    return prod(y) * prod(layer.weight.shape[1:])


@rule(_ConvTransposeNd)
def transposed_convolution(layer: _ConvTransposeNd, x: Sequence[int], y: Sequence[int]) -> int:
    return prod(x) * prod(layer.weight.shape[1:])


@rule(nn.LayerNorm, nn.GroupNorm)
def norm(layer: nn.LayerNorm | nn.GroupNorm, x: Sequence[int], y: Sequence[int]) -> int:
    return prod(x) * (4 if layer.weight is None else 5)


@rule(nn.RMSNorm)
def root_mean_square_norm(layer: nn.RMSNorm, x: Sequence[int], y: Sequence[int]) -> int:
    return prod(x) * (3 if layer.weight is None else 4)


@rule(_BatchNorm)
def batch_norm(layer: _BatchNorm, x: Sequence[int], y: Sequence[int]) -> int:
    return prod(x) * (1 if layer.weight is None else 2)


@rule(nn.AdaptiveAvgPool2d)
def average_pooling(layer: nn.AdaptiveAvgPool2d, x: Sequence[int], y: Sequence[int]) -> int:
    return prod(x)


@rule(Mlp, whole=True)
def mlp(layer: Mlp, x: Sequence[int], y: Sequence[int]) -> int:
    positions = prod(x) // layer.fc1.in_features
    return positions * (layer.fc1.weight.numel() + layer.fc2.weight.numel())


@rule(SS2D)
def ss2d(layer: SS2D, x: Sequence[int], y: Sequence[int]) -> int:
    """The projections and scans of the K directions; the linear layers, convolution and norm count for themselves."""
    axis = 1 if layer.channel_first else -1
    positions = prod(x) // x[axis]
    groups, _, inner = layer.x_proj_weight.shape
    macs = positions * layer.x_proj_weight.numel()
    if not layer.ssd:
        macs += positions * layer.dt_projs_weight.numel()
    if layer.options.scan_order == "cascade2d":
        macs += 2 * 4 * positions * inner  # two norms without weights
    return macs + scan_macs(positions, groups * inner, layer.d_state, skip=True)


# Its steps depend on the grid of the tokens, which no shape tells.
count_by_operators(VimMixer)
