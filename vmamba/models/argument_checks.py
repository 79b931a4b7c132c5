"""Numbers that a user may give, checked by name before anything is built."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from ..errors import UserError


def check_int(argument: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raise a UserError unless `value` is an int from `least` to `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
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


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
