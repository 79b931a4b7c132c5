"""Operators of the VMamba family: one folder each, a reference in PyTorch and native backends behind one registered op.

The functions are bound here at once, because each has the name of its own folder and must win over it.
"""

from .causal_conv1d import causal_conv1d
from .conv2d import conv2d
from .cross_scan import (
    cross_merge,
    cross_merge_fn,
    cross_scan,
    cross_scan_fn,
    list_scan_orders,
    register_scan_order,
    scan_order,
)
from .depthwise_silu import depthwise_silu
from .mamba_inner import mamba_inner
from .mlp import mlp
from .pooled_scan import pool_tokens, pooled_scan
from .rms_norm import rms_norm
from .selective_scan import selective_scan, selective_scan_fn
from .ss2d import ss2d
from .ssd import selective_scan_chunk_fn, ssd

__all__ = [
    "causal_conv1d",
    "conv2d",
    "cross_merge",
    "cross_merge_fn",
    "cross_scan",
    "cross_scan_fn",
    "depthwise_silu",
    "list_scan_orders",
    "mamba_inner",
    "mlp",
    "pool_tokens",
    "pooled_scan",
    "register_scan_order",
    "rms_norm",
    "scan_order",
    "selective_scan",
    "selective_scan_chunk_fn",
    "selective_scan_fn",
    "ss2d",
    "ssd",
]
