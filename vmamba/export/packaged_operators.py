"""The scans under schemas that an AOTInductor package can call.

A package hands arguments on through its own executor, which numbers number types differently from the operators (torch
2.11: a float32 arrives as float64). So each scan gets a twin `vmamba::NAME_packaged` whose argument `out_dtype` is a
flag: true for float32, false for the type of the first argument. Importing this module registers them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vmamba_kernels.pooled_scan import op as pooled_scan_op
from vmamba_kernels.selective_scan import op as selective_scan_op
from vmamba_kernels.ss2d import op as ss2d_op
from vmamba_kernels.ssd import op as ssd_op

_library = torch.library.Library("vmamba", "FRAGMENT")


def _twin(operator: Any) -> Callable[..., Any]:
    """A function that calls the new twin of an operator with the operator's own arguments."""
    schema = operator._schema
    position = [argument.name for argument in schema.arguments].index("out_dtype")
    name = schema.name.removeprefix("vmamba::") + "_packaged"
    arguments = str(schema).partition("(")[2].replace("ScalarType out_dtype", "bool out_dtype")

    def run(*given: Any) -> Any:
        dtype = torch.float32 if given[position] else given[0].dtype
        return operator(*given[:position], dtype, *given[position + 1 :])

    _library.define(f"{name}({arguments}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vmamba::{name}", run, lib=_library)
    twin = getattr(torch.ops.vmamba, name).default

    def call(*given: Any) -> Any:
        return twin(*given[:position], given[position] is torch.float32, *given[position + 1 :])

    return call


_OPERATORS = (
    ss2d_op.forward,
    ssd_op.forward,
    pooled_scan_op.forward,
    selective_scan_op.by_device,
    selective_scan_op.on_reference,
)
TWINS = {operator: _twin(operator) for operator in _OPERATORS}
