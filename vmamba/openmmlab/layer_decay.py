"""A learning rate that falls with the depth of a layer, for every backbone that tells its layers."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from timm.models._manipulate import group_with_matcher
from torch import nn

from vmamba.errors import UserError

_REST = "everything behind the backbone"


def layer_scales(backbone: nn.Module, rate: float) -> dict[str, float]:
    """Return {parameter of the backbone: factor of its learning rate}, `rate` to the number of layers above it.

    The layers are those of the backbone's `group_matcher`, the stem being the first; what belongs to none, such as the
    norms of the maps, counts as above them all and has factor 1.
    """
    matcher = getattr(backbone, "group_matcher", None)
    if not callable(matcher):
        raise UserError(
            f"paramwise_cfg.layer_decay_rate: {type(backbone).__name__} does not tell its layers (no group_matcher); "
            "use a backbone of this package, or remove the constructor"
        )
    named = iter([*backbone.named_parameters(), (_REST, None)])
    layers = group_with_matcher(named, matcher(), reverse=True)
    return {name: rate ** (layers[_REST] - layer) for name, layer in layers.items() if name != _REST}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with ``paramwise_cfg = dict(layer_decay_rate=0.7)``; its other keys work as ever.

    A parameter of ``model.backbone`` has the learning rate it would otherwise have, times the rate to the number of
    layers above it. Raises `UserError` for a rate outside (0, 1] and for a backbone that does not tell its layers.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        """Append a group for each parameter of `module`, as the base class does, and scale those of the backbone."""
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # the base class calls this again for every child
            return
        rate = self.paramwise_cfg.get("layer_decay_rate")
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UserError(f"paramwise_cfg.layer_decay_rate: expected a number above 0 and up to 1, got {rate!r}")
        backbone = getattr(module, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise UserError(f"layer_decay_rate: {type(module).__name__} has no backbone; remove the constructor")
        scales = layer_scales(backbone, rate)
        by_parameter = {id(value): scales[name] for name, value in backbone.named_parameters()}
        for group in params:
            scale = by_parameter.get(id(group["params"][0]))
            if scale is not None:
                group["lr"] = group["lr"] * scale if "lr" in group else self.optimizer_cfg["lr"] * scale
