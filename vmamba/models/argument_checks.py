"""Numbers and sizes that a user may give, checked by name before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from ..errors import UserError


def check_int(argument: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raise a UserError unless `value` is an int from `least` to `most`."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{argument}: expected an int {bounds}, got {value!r}")


def check_rate(argument: str, value: Any) -> None:
    """Raise a UserError unless `value` is a number from 0 to below 1."""
    if not _is_number(value) or not 0 <= value < 1:
        raise UserError(f"{argument}: expected a number from 0 to below 1, got {value!r}")


def check_positive(argument: str, value: Any) -> None:
    """Raise a UserError unless `value` is a number above 0 and below infinity."""
    if not _is_number(value) or not 0 < value < float("inf"):
        raise UserError(f"{argument}: expected a number above 0, got {value!r}")


def check_not_negative(argument: str, value: Any) -> None:
    """Raise a UserError unless `value` is a number of at least 0 and below infinity."""
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise UserError(f"{argument}: expected a number of at least 0, got {value!r}")


def int_or_auto(argument: str, value: Any, auto: int) -> int:
    """`value` as an int of at least 1, which may come as "4" or 4.0, or `auto` for "auto"; UserError otherwise."""
    if value == "auto":
        return auto
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        found = 0
    if found < 1 or isinstance(value, bool) or (not isinstance(value, str) and found != value):
        raise UserError(f"{argument}: expected 'auto' or an int of at least 1, got {value!r}")
    return found


def pair(argument: str, size: Any) -> tuple[int, int]:
    """(H, W) from an int, or from two in a sequence or an array; UserError otherwise."""
    plain = size.tolist() if hasattr(size, "tolist") else size
    sides = (plain, plain) if is_whole(plain) else tuple(plain) if isinstance(plain, Sequence) else ()
    if len(sides) != 2 or not all(is_whole(side) for side in sides):
        raise UserError(f"{argument}: expected an int or (H, W), got {size!r}")
    return int(sides[0]), int(sides[1])


def is_whole(value: Any) -> bool:
    """Whether `value` is an int, of numpy's too, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
