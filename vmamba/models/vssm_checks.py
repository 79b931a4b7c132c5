"""The values that VSSM's arguments may have, checked before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from ..errors import UserError

LARGEST_STATE = 256


def check_vssm_arguments(
    depths: Any,
    dims: Any,
    patch_size: Any,
    ssm_d_state: Any,
    ssm_conv: Any,
    rates: dict[str, Any],
    names: dict[str, Any],
) -> None:
    """Raise a `UserError` that names the first argument whose value cannot work.

    `rates` are the ratios, at least 0, and drop_path_rate, which is also below 1; `names` are those that are strings.
    """
    for argument, value in names.items():
        if not isinstance(value, str):
            raise UserError(f"{argument}: expected a string, got {value!r}")
    _check_counts("depths", depths)
    _check_counts("dims", (dims,) if _whole(dims) else dims)
    if not _whole(patch_size) or patch_size < 1:
        raise UserError(f"patch_size: expected an int of at least 1, got {patch_size!r}")
    if names["patchembed_version"].lower() == "v2" and patch_size % 2:
        raise UserError(
            f"patch_size: the stem 'v2' is two convolutions and needs an even patch_size, got {patch_size}; "
            "patchembed_version 'v1' takes any"
        )
    if not _whole(ssm_d_state) or not 1 <= ssm_d_state <= LARGEST_STATE:
        raise UserError(f"ssm_d_state: expected an int from 1 to {LARGEST_STATE}, got {ssm_d_state!r}")
    if not _whole(ssm_conv) or (ssm_conv >= 2 and ssm_conv % 2 == 0):
        raise UserError(
            f"ssm_conv: expected an odd kernel size, or below 2 for no convolution, got {ssm_conv!r}; "
            "an even kernel changes the image size"
        )
    for argument, value in rates.items():
        if not isinstance(value, (int, float)) or not value >= 0:
            raise UserError(f"{argument}: expected a number of at least 0, got {value!r}")
    if not rates["drop_path_rate"] < 1:
        raise UserError(f"drop_path_rate: expected a number from 0 to below 1, got {rates['drop_path_rate']!r}")


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_counts(argument: str, values: Any) -> None:
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or not all(_whole(n) and n >= 1 for n in values):
        raise UserError(f"{argument}: expected positive ints, got {values!r}")
