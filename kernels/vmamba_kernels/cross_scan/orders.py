"""Scan orders as data: a name stands for K permutations of the H x W positions of an image.

Row k of the map [K, L] of an order, L = H*W, holds for each scan position the row-major index h*W + w it reads.
The built-in orders are made of the eight symmetries of a rectangle; any other permutation is registered as a function.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

OrderFunction = Callable[[int, int], Tensor]


class Move(NamedTuple):
    """One way to read an image: flip the axes named, then read columns instead of rows if transposed."""

    flip_h: bool = False
    flip_w: bool = False
    transpose: bool = False

    @property
    def flipped(self) -> list[int]:
        """The flipped axes of [..., H, W]."""
        return [axis for axis, flip in ((-2, self.flip_h), (-1, self.flip_w)) if flip]

    def apply(self, image: Tensor) -> Tensor:
        """[..., H, W] as the sequence reads it: [..., H, W] or, transposed, [..., W, H]."""
        image = image.flip(self.flipped) if self.flipped else image
        return image.transpose(-1, -2) if self.transpose else image

    def undo(self, image: Tensor) -> Tensor:
        """The inverse of `apply`."""
        image = image.transpose(-1, -2) if self.transpose else image
        return image.flip(self.flipped) if self.flipped else image


ROWS = Move()
ROWS_REVERSED = Move(flip_h=True, flip_w=True)
COLUMNS = Move(transpose=True)
COLUMNS_REVERSED = Move(flip_h=True, flip_w=True, transpose=True)
EACH_ROW_REVERSED = Move(flip_w=True)
EACH_COLUMN_REVERSED = Move(flip_h=True, transpose=True)
QUARTER_TURN = Move(flip_w=True, transpose=True)


@dataclass(frozen=True)
class ScanOrder:
    """A registered order: its number K of sequences, its map as a function of (H, W), and its moves if it has them."""

    name: str
    sequences: int
    function: OrderFunction
    moves: tuple[Move, ...] = ()


_orders: dict[str, ScanOrder] = {}
_published = {0: "cross2d", 1: "unidi", 2: "bidi", 3: "rot90", -1: "cascade2d"}


def _of_moves(moves: tuple[Move, ...]) -> OrderFunction:
    def function(H: int, W: int) -> Tensor:
        image = torch.arange(H * W).view(H, W)
        return torch.stack([move.apply(image).reshape(-1) for move in moves])

    return function


def _register_moves(name: str, *moves: Move) -> None:
    _orders[name] = ScanOrder(name, len(moves), _of_moves(moves), moves)


_register_moves("cross2d", ROWS, COLUMNS, ROWS_REVERSED, COLUMNS_REVERSED)
_register_moves("unidi", ROWS, ROWS, ROWS, ROWS)
_register_moves("bidi", ROWS, ROWS, ROWS_REVERSED, ROWS_REVERSED)
_register_moves("rot90", ROWS, QUARTER_TURN, ROWS_REVERSED, EACH_COLUMN_REVERSED)
_register_moves("cascade2d", ROWS, EACH_ROW_REVERSED, COLUMNS, EACH_COLUMN_REVERSED)
_register_moves("rows", ROWS)
_register_moves("columns", COLUMNS)
_register_moves("rows_both", ROWS, ROWS_REVERSED)
_register_moves("columns_both", COLUMNS, COLUMNS_REVERSED)


def list_scan_orders() -> list[str]:
    """Names of the registered orders."""
    return list(_orders)


def find_order(order: str | int) -> ScanOrder:
    """The order of that name, or of that published integer (0, 1, 2, 3, -1); ValueError for any other."""
    known = not isinstance(order, bool) and isinstance(order, int) and order in _published
    name = _published[order] if known else order  # type: ignore[index]
    found = _orders.get(name) if isinstance(name, str) else None
    if found is None:
        near = difflib.get_close_matches(str(order), _orders, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"order: {order!r} is not one of {', '.join(_orders)} or 0, 1, 2, 3, -1.{hint}")
    return found


def register_scan_order(name: str, fn: OrderFunction, *, replace: bool = False) -> None:
    """Register a scan order, which `cross_scan`, `cross_merge` and the models then accept by its name.

    Args:
        name: a new name; one that is taken is refused unless `replace` is set and it is not built in.
        fn: fn(H, W) -> integer tensor [K, H*W], row k the row-major source index of each scan position; K must not
            depend on H and W, and every row must be a permutation of 0..H*W-1. The merge is derived from it.

    Raises:
        ValueError: the name is taken or not a string, or fn does not return such a tensor.
    """
    if not isinstance(name, str) or not name or name.lstrip("-").isdigit():
        raise ValueError(f"name: expected a name for the scan order, got {name!r}")
    taken = _orders.get(name)
    if taken is not None and (taken.moves or not replace):
        remedy = "choose another name" if taken.moves else "pass replace=True or choose another name"
        raise ValueError(f"name: scan order {name!r} exists already; {remedy}")
    maps = [_checked(name, fn, H, W) for H, W in ((2, 3), (1, 1), (4, 2))]
    counts = {len(m) for m in maps}
    if len(counts) != 1:
        raise ValueError(f"fn: scan order {name!r} has {sorted(counts)} sequences at different sizes, not one number")
    _orders[name] = ScanOrder(name, len(maps[0]), fn)
    forget_maps()


def _checked(name: str, fn: OrderFunction, H: int, W: int) -> Tensor:
    """fn(H, W) as an int64 tensor on CPU; ValueError unless every row is a permutation."""
    with torch.device("cpu"):
        found = torch.as_tensor(fn(H, W))
    integral = not (found.is_floating_point() or found.is_complex())
    if not integral or found.dim() != 2 or found.shape[0] < 1 or found.shape[1] != H * W:
        raise ValueError(
            f"fn: scan order {name!r} at {H}x{W} must be an integer tensor [K, {H * W}], "
            f"got {found.dtype} {tuple(found.shape)}"
        )
    found = found.to("cpu", torch.int64)
    if not torch.equal(found.sort(1).values, torch.arange(H * W, device="cpu").expand_as(found)):
        raise ValueError(f"fn: scan order {name!r} at {H}x{W} has a row that is not a permutation of 0..{H * W - 1}")
    return found.contiguous()


@lru_cache(maxsize=128)
def order_map(name: str, H: int, W: int, device: torch.device) -> Tensor:
    """int64 [K, L]: the source index of each scan position. Shared: not to be written to."""
    with torch.inference_mode(False), torch.no_grad():
        return _checked(name, _orders[name].function, H, W).to(device)


@lru_cache(maxsize=128)
def inverse_map(name: str, H: int, W: int, device: torch.device) -> Tensor:
    """int64 [K, L]: the scan position at which each source index is read. Shared: not to be written to."""
    with torch.inference_mode(False), torch.no_grad():
        return order_map(name, H, W, device).argsort(1)


def forget_maps() -> None:
    """Empty the caches of maps."""
    for cache in map_caches:
        cache.cache_clear()


map_caches = [order_map, inverse_map]


def scan_order(order: str | int, H: int, W: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [K, H*W]: row k is the row-major source index of each position of sequence k; a fresh copy."""
    if H < 1 or W < 1:
        raise ValueError(f"H, W: expected positive sizes, got {H}, {W}")
    return order_map(find_order(order).name, H, W, torch.device(device)).clone()
