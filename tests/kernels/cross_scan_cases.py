"""Orders, sizes and layouts that the tests of cross scan share."""

from __future__ import annotations

import itertools

import pytest
import torch

from vmamba_kernels import list_scan_orders, register_scan_order, scan_order

BUILT_IN = ["cross2d", "unidi", "bidi", "rot90", "cascade2d", "rows", "columns", "rows_both", "columns_both"]
SIZES = [(4, 4), (3, 5), (7, 2), (1, 6), (6, 1), (1, 1)]
LAYOUTS = list(itertools.product([True, False], repeat=2))
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
    ),
]


def snake(H: int, W: int) -> torch.Tensor:
    """Rows left to right and back in turn, and the same walked from the end."""
    image = torch.arange(H * W).view(H, W)
    image[1::2] = image[1::2].flip(1)
    return torch.stack([image.flatten(), image.flatten().flip(0), image.flatten()])


if "test_snake" not in list_scan_orders():
    register_scan_order("test_snake", snake)
ORDERS = [*BUILT_IN, "test_snake"]


def sequences(order: str) -> int:
    return len(scan_order(order, 1, 1))


def channel_last(x: torch.Tensor) -> torch.Tensor:
    """[B, (K,) C, H, W] stored and shaped as [B, H, W, (K,) C]."""
    return x.movedim((-2, -1), (1, 2)).contiguous()
