"""The norm of a gradient, and the three ways to limit it."""

from __future__ import annotations

from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

CLIP_MODES = ("norm", "value", "agc")


def clip_gradients(network: nn.Module, limit: float | None, mode: str) -> Tensor:
    """Return the norm of the whole gradient as it was, and limit the gradient in place; no or 0 `limit` leaves it.

    ``norm`` scales all of it to a norm of `limit`; ``value`` cuts each number to +-`limit`; ``agc`` scales each unit's
    gradient to `limit` times the norm of its weights, the classifier's head left out (Brock et al., "High-Performance
    Large-Scale Image Recognition Without Normalization", 2021, 4.1).
    """
    owners = [parameter for parameter in network.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in owners if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if limit and mode == "norm":
        clip_grads_with_norm_(owners, limit, norm)
    elif limit:
        head = {id(parameter) for parameter in _head(network)} if mode == "agc" else set()
        dispatch_clip_grad([parameter for parameter in owners if id(parameter) not in head], limit, mode)
    return norm


def _head(network: nn.Module) -> list[nn.Parameter]:
    find = getattr(network, "get_classifier", None)
    head = find() if callable(find) else None
    return list(head.parameters()) if isinstance(head, nn.Module) else []
