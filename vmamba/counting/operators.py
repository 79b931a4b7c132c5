"""MACs of single operators from the shapes of their arguments: our own, and PyTorch's for what no layer's rule covers.

A rule takes the shapes of an op's arguments in the order of its schema (None for what is no tensor) and that of its
first result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

Shape = Sequence[int] | None
OperatorRule = Callable[[Sequence[Any], Any], int]

# Per step, channel and state: the published counter's figure for the decay, the input and the output of a scan.
SCAN_MACS = 9


def scan_macs(steps: int, channels: int, states: int, skip: bool) -> int:
    """Return the MACs of `channels` recurrences of `states` numbers over `steps` steps, all images together."""
    return SCAN_MACS * steps * channels * states + (steps * channels if skip else 0)


def _selective_scan(args: Sequence[Any], result: Any) -> int:
    (batch, channels, length), states = args[0], args[2][1]  # u [B, C, L], A [C, N]
    return scan_macs(batch * length, channels, states, args[5] is not None)


def _ss2d(args: Sequence[Any], result: Any) -> int:
    groups, inner, rank = args[2]  # dt_weight [K, I, R]; x has I channels in either layout
    positions = prod(args[0]) // inner
    return positions * groups * inner * rank + scan_macs(positions, groups * inner, args[3][1], args[4] is not None)


def _ssd(args: Sequence[Any], result: Any) -> int:
    batch, length, heads, width = args[0]  # x [B, L, H, P], B [B, L, G, N]
    return scan_macs(batch * length, heads * width, args[3][-1], args[5] is not None)


def _pooled_scan(args: Sequence[Any], result: Any) -> int:
    batch, groups, channels, length = args[0]  # u_full [B, K, D, L]; u_pooled [.., .., M]; A [K * D, N]
    skip = batch * groups * channels * length if args[6] is not None else 0
    return scan_macs(batch * args[1][2], args[3][0], args[3][1], False) + skip


def _causal_conv1d(args: Sequence[Any], result: Any) -> int:
    return prod(result) * args[1][-1]  # y [B, G * C, L], weight [G, C, W]


def _mamba_inner(args: Sequence[Any], result: Any) -> int:
    batch, length, channels = result  # conv_weight [G, E, W], x_weight [G, R + 2N, E], dt_weight [G, E, R], A [G*E, N]
    taps, (groups, rows, _), rank, states = args[1][2], args[3], args[4][2], args[5][1]
    of_layers = batch * length * groups * channels * (taps + rows + rank)
    return of_layers + scan_macs(batch * length, groups * channels, states, True)


def _channel_last_convolution(args: Sequence[Any], result: Any) -> int:
    return prod(result) * prod(args[1][1:])  # y [B, H, W, O], weight [O, C, k, k]; depthwise [O, 1, k, k]


def _mlp(args: Sequence[Any], result: Any) -> int:
    return prod(args[0]) * args[1][0] + prod(result) * args[3][1]  # x [.., C], weight1 [F, C], weight2 [O, F]


def _rms_norm(args: Sequence[Any], result: Any) -> int:
    return 4 * prod(result)


def _nothing(args: Sequence[Any], result: Any) -> int:
    return 0


OURS: dict[str, OperatorRule] = {
    "vmamba::selective_scan": _selective_scan,
    "vmamba::selective_scan_reference": _selective_scan,
    "vmamba::ss2d": _ss2d,
    "vmamba::ssd": _ssd,
    "vmamba::pooled_scan": _pooled_scan,
    "vmamba::causal_conv1d": _causal_conv1d,
    "vmamba::cross_scan": _nothing,
    "vmamba::cross_merge": _nothing,
    "vmamba::mamba_inner": _mamba_inner,
    "vmamba::depthwise_silu": _channel_last_convolution,
    "vmamba::conv2d": _channel_last_convolution,
    "vmamba::mlp": _mlp,
    "vmamba::rms_norm": _rms_norm,
}


def _product(left: int, right: int) -> OperatorRule:
    """Return the rule of a (batched) matrix product [.., m, k] x [.., k, n] of two of the arguments."""
    return lambda args, result: prod(args[left]) * args[right][-1]


def _convolution(args: Sequence[Any], result: Any) -> int:
    transposed = args[6] is True
    return prod(args[0] if transposed else result) * prod(args[1][1:])


def _norm(weight: int, with_weight: int, without: int) -> OperatorRule:
    return lambda args, result: prod(args[0]) * (without if args[weight] is None else with_weight)


def _attention(args: Sequence[Any], result: Any) -> int:
    query, key, value = args[:3]  # [B, heads, M, d], [B, heads, N, d], [B, heads, N, e]
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


PYTORCH: dict[str, OperatorRule] = {
    "aten::mm": _product(0, 1),
    "aten::addmm": _product(1, 2),
    "aten::bmm": _product(0, 1),
    "aten::baddbmm": _product(1, 2),
    "aten::convolution": _convolution,
    "aten::native_layer_norm": _norm(2, 5, 4),
    "aten::native_group_norm": _norm(1, 5, 4),
    "aten::_native_batch_norm_legit_no_training": _norm(1, 2, 1),
    "aten::_adaptive_avg_pool2d": lambda args, result: prod(args[0]),
    "aten::upsample_nearest2d": lambda args, result: prod(result),
    "aten::upsample_bilinear2d": lambda args, result: 4 * prod(result),
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_attention_math": _attention,
}
OPERATORS = {**PYTORCH, **OURS}
