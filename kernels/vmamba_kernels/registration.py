"""What the registration of every operator has in common: definition, gradients, vmap one call after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

library = torch.library.Library("vmamba", "FRAGMENT")


def define(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """The new op `vmamba::name`, of one kernel for all devices and the fake kernel that infers shapes."""
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vmamba::{name}", fake, lib=library)
    return getattr(torch.ops.vmamba, name).default


def differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Register the gradient of `vmamba::name`, and that `vmamba::name_backward` has none."""
    torch.library.register_autograd(f"vmamba::{name}", backward, setup_context=setup_context, lib=library)
    refuse_second(name)


def refuse_second(name: str) -> None:
    """Register a gradient of `vmamba::name_backward` that raises RuntimeError."""

    def refuse(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(f"{name}: second derivatives are not implemented")

    torch.library.register_autograd(f"vmamba::{name}_backward", refuse, lib=library)


def vectorize(op: torch._ops.OpOverload, rule: Callable[..., Any]) -> None:
    """Register the vmap rule of an op."""
    torch.library.register_vmap(op._schema.name, rule, lib=library)


def one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule that calls an op for each index of the mapped dimension and stacks the results."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        mapped = [isinstance(a, Tensor) and d is not None for a, d in zip(args, in_dims, strict=True)]
        results = []
        for i in range(info.batch_size):
            picked = [a.select(d, i) if is_mapped else a for a, d, is_mapped in zip(args, in_dims, mapped, strict=True)]
            results.append(op(*picked))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(part) for part in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule
