"""The values that VSSM's arguments may have, checked before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmamba_kernels.selective_scan.arguments import MAX_STATES

from ..errors import UserError
from .argument_checks import check_int, check_not_negative, check_rate, is_whole


def check_vssm_arguments(
    depths: Any,
    dims: Any,
    patch_size: Any,
    ssm_d_state: Any,
    ssm_conv: Any,
    drop_path_rate: Any,
    ratios: dict[str, Any],
    names: dict[str, Any],
) -> None:
    """Raise a `UserError` that names the first argument whose value cannot work.

    `ratios` are numbers of at least 0, and `names` strings.
    """
    for argument, value in names.items():
        if not isinstance(value, str):
            raise UserError(f"{argument}: expected a string, got {value!r}")
    _check_counts("depths", depths)
    _check_counts("dims", (dims,) if is_whole(dims) else dims)
    check_int("patch_size", patch_size)
    if names["patchembed_version"].lower() == "v2" and patch_size % 2:
        raise UserError(
            f"patch_size: the stem 'v2' is two convolutions and needs an even patch_size, got {patch_size}; "
            "patchembed_version 'v1' takes any"
        )
    check_int("ssm_d_state", ssm_d_state, most=MAX_STATES)
    if not is_whole(ssm_conv) or (ssm_conv >= 2 and ssm_conv % 2 == 0):
        raise UserError(
            f"ssm_conv: expected an odd kernel size, or below 2 for no convolution, got {ssm_conv!r}; "
            "an even kernel changes the image size"
        )
    for argument, value in ratios.items():
        check_not_negative(argument, value)
    check_rate("drop_path_rate", drop_path_rate)


def _check_counts(argument: str, values: Any) -> None:
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or not all(is_whole(n) and n >= 1 for n in values):
        raise UserError(f"{argument}: expected positive ints, got {values!r}")
