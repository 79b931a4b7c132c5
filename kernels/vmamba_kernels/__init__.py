"""Operators of the VMamba family: one folder each, a reference in PyTorch and native backends behind one registered op.

The functions are bound here at once, because each has the name of its own folder and must win over it.
"""

from .cross_scan import (
    cross_merge,
    cross_merge_fn,
    cross_scan,
    cross_scan_fn,
    list_scan_orders,
    register_scan_order,
    scan_order,
)
from .pooled_scan import pool_tokens, pooled_scan
from .selective_scan import selective_scan, selective_scan_fn
from .ss2d import ss2d

__all__ = [
    "cross_merge",
    "cross_merge_fn",
    "cross_scan",
    "cross_scan_fn",
    "list_scan_orders",
    "pool_tokens",
    "pooled_scan",
    "register_scan_order",
    "scan_order",
    "selective_scan",
    "selective_scan_fn",
    "ss2d",
]
