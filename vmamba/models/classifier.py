"""The classifier of VMamba: norm, pooling, linear head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from .layers import to_channel_first

_POOLS: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AdaptiveAvgPool2d(1),
    "max": lambda: nn.AdaptiveMaxPool2d(1),
    "": nn.Identity,
}


def init_linear(layer: nn.Linear) -> None:
    """Draw the weights of a linear layer as published: normal of deviation 0.02, cut at 2; bias 0."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Classifier(nn.Sequential):
    """Maps the last stage's output, in the model's layout, to logits [B, num_classes]; the keys are the published ones.

    Without pooling the logits keep the layout of the input. With 0 classes the head is the identity.
    """

    norm: nn.Module
    permute: nn.Module
    avgpool: nn.Module
    flatten: nn.Module
    drop: nn.Module
    head: nn.Module

    def __init__(
        self,
        dim: int,
        num_classes: int,
        norm: Callable[..., nn.Module],
        channel_first: bool,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.channel_first = channel_first
        self.norm = norm(dim, **dd)
        self.permute = nn.Identity() if channel_first else to_channel_first()
        self._set_pool(global_pool)
        self.flatten = nn.Flatten(1)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes, **dd) if num_classes > 0 else nn.Identity()

    def _set_pool(self, name: str) -> None:
        if name not in _POOLS:
            raise UserError(f"global_pool: {name!r} is not one of 'avg', 'max', ''")
        self.global_pool = name
        self.avgpool = _POOLS[name]()

    def reset(self, num_classes: int, global_pool: str | None, like: Tensor) -> None:
        """A new head of the type and on the device of `like` and, if given, another pooling."""
        if global_pool is not None:
            self._set_pool(global_pool)
        self.head = nn.Identity()
        if num_classes > 0:
            head = nn.Linear(self.dim, num_classes, device=like.device, dtype=like.dtype)
            init_linear(head)
            self.head = head

    def logits(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of normed features, or with `pre_logits` what the head would be given."""
        if self.global_pool:
            x = self.drop(self.flatten(self.avgpool(self.permute(x))))
            return x if pre_logits else self.head(x)
        x = self.drop(x)
        if pre_logits:
            return x
        return self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.channel_first else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.norm(x))
