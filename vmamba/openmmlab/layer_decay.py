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
    layers, rest = _layers(backbone)
    return {name: rate ** (rest - layer) for name, layer in layers.items()}


def legacy_scales(backbone: nn.Module, rate: float, num_layers: int | None = None) -> dict[str, float]:
    """Return the factors that published configurations of Vim and FastVim had: of the stem alone, all others are 1.

    Their constructors looked for blocks by another name than the backbone's, and found none. The stem's power is
    `num_layers` + 1, by default the number of layers above it.
    """
    layers, rest = _layers(backbone)
    power = rest if num_layers is None else num_layers + 1
    return {name: 1.0 if layer else rate**power for name, layer in layers.items()}


def _layers(backbone: nn.Module) -> tuple[dict[str, int], int]:
    """Return {parameter: its layer}, the stem being 0, and the number of the layer above them all."""
    matcher = getattr(backbone, "group_matcher", None)
    if not callable(matcher):
        raise UserError(
            f"paramwise_cfg.layer_decay_rate: {type(backbone).__name__} does not tell its layers (no group_matcher); "
            "use a backbone of this package, or remove the constructor"
        )
    named = iter([*backbone.named_parameters(), (_REST, None)])
    layers = group_with_matcher(named, matcher(), reverse=True)
    return layers, layers.pop(_REST)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with ``paramwise_cfg = dict(layer_decay_rate=0.7)``; its other keys work as ever.

    A parameter of ``model.backbone`` has the learning rate it would otherwise have, times the rate to the number of
    layers above it. ``legacy=True`` repeats what published configurations of Vim and FastVim did instead, which
    `legacy_scales` tells; `num_layers` is of that. Raises `UserError` for a rate outside (0, 1] and for a backbone that
    does not tell its layers.
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
        if self.paramwise_cfg.get("legacy"):
            scales = legacy_scales(backbone, rate, self.paramwise_cfg.get("num_layers"))
        else:
            scales = layer_scales(backbone, rate)
        by_parameter = {id(value): scales[name] for name, value in backbone.named_parameters()}
        for group in params:
            scale = by_parameter.get(id(group["params"][0]))
            if scale is not None:
                group["lr"] = group["lr"] * scale if "lr" in group else self.optimizer_cfg["lr"] * scale
