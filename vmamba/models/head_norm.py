"""A batch norm without weights before the classifier's last layer, as MAE's linear probe has it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import UserError


class NormedLinear(nn.Linear):
    """Maps features [B, D], normed by the batch's statistics in training, to logits [B, num_classes].

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, appendix A.1.
    """

    # what the loader of `vmamba.weights` lets weights of a plain head do without
    optional_keys = ("norm.*",)

    def __init__(self, like: nn.Linear) -> None:
        kind: dict[str, Any] = {"device": like.weight.device, "dtype": like.weight.dtype}
        super().__init__(like.in_features, like.out_features, bias=like.bias is not None, **kind)
        self.weight = like.weight
        self.bias = like.bias
        self.norm = nn.BatchNorm1d(like.in_features, affine=False, eps=1e-6, **kind)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


def norm_head(network: nn.Module) -> nn.Module:
    """Return `network`, its linear classifier head replaced by a `NormedLinear`; `UserError` if it has none."""
    find = getattr(network, "get_classifier", None)
    head = find() if callable(find) else None
    names = [name for name, module in network.named_modules() if module is head]
    if not isinstance(head, nn.Linear) or not names:
        raise UserError(f"MODEL.HEAD_NORM: {type(network).__name__} has no linear classifier head")
    parent, _, name = names[0].rpartition(".")
    setattr(network.get_submodule(parent), name, NormedLinear(head))
    return network
