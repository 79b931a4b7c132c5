"""The arguments that Vim and its relatives may have, checked before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import UserError, closest
from .argument_checks import check_int, check_not_negative, check_positive, check_rate
from .vim_mixer import VimMixer

# Arguments of the mixer that the model itself sets, not `ssm_cfg`.
_OF_THE_MODEL = ("self", "d_model", "bimamba_type", "if_divide_out", "init_layer_scale", "device", "dtype")
INITIALIZER_ARGUMENTS = ("initializer_range", "rescale_prenorm_residual", "n_residuals_per_layer")


def refuse_unknown(kind: type[nn.Module], unknown: Mapping[str, Any]) -> None:
    """TypeError naming the first unknown constructor argument of a class and the nearest known one."""
    for name in unknown:
        known = {p for base in kind.__mro__ if base is not nn.Module for p in _parameters(base)}
        raise TypeError(f"{kind.__name__}: unknown argument {name!r}.{closest(name, sorted(known))}")


def _parameters(kind: type) -> list[str]:
    """The names of a constructor's arguments that a caller may give."""
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    named = (p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return [name for name in named if name != "self" and not name.startswith("_")]


def check_vim_arguments(
    counts: Mapping[str, Any],
    rates: Mapping[str, Any],
    norm_epsilon: Any,
    ssm_cfg: Mapping[str, Any] | None,
    initializer_cfg: Mapping[str, Any] | None,
    pairs: bool,
) -> None:
    """Raise a UserError that names the first argument whose value cannot work; `pairs` wants an even depth."""
    for argument, value in counts.items():
        check_int(argument, value)
    if pairs and counts["depth"] % 2:
        raise UserError(f"depth: if_bidirectional takes the blocks in pairs, got {counts['depth']} blocks")
    for argument, value in rates.items():
        check_rate(argument, value)
    check_not_negative("norm_epsilon", norm_epsilon)
    of_mixer = [name for name in _parameters(VimMixer) if name not in _OF_THE_MODEL]
    for argument, given, known in (
        ("ssm_cfg", ssm_cfg, of_mixer),
        ("initializer_cfg", initializer_cfg, list(INITIALIZER_ARGUMENTS)),
    ):
        for name in given or ():
            if name not in known:
                raise UserError(f"{argument}: {name!r} is not one of {', '.join(known)}.{closest(name, known)}")
    check_positive("n_residuals_per_layer", dict(initializer_cfg or {}).get("n_residuals_per_layer", 1))
