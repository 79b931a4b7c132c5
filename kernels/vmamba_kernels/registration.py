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
    """Register the gradient of `vmamba::name`, and that `vmamba::name_backward` has none.

    `setup_context(ctx, inputs, output)` keeps what `backward(ctx, *grads)` needs, which returns one gradient, or None,
    for each input.
    """
    _differentiate(name, backward, setup_context)

    def refuse(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(f"{name}: second derivatives are not implemented")

    _differentiate(f"{name}_backward", refuse, lambda ctx, inputs, output: None)


def _differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """What `torch.library.register_autograd` does, for ops without defaults, without its 60 us a call."""
    op = getattr(torch.ops.vmamba, name).default

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"vmamba_{name}", (torch.autograd.Function,), members)

    def kernel(keyset: torch._C.DispatchKeySet, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            if torch._C._are_functorch_transforms_active():
                raise RuntimeError(f"{name}: torch.func's gradients are not implemented; take torch.autograd's")
            return function.apply(*inputs)
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)

    library.impl(name, kernel, "Autograd", with_keyset=True)


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
