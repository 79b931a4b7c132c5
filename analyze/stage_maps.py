"""The features of every stage of a network, with the gradient that a score has at them.

Source of Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", 2017.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models.class_tokens import class_token_places, without_tokens


@dataclass
class StageMap:
    """Features [C, h, w] of one stage for one image, and the gradient [C, h, w] of a class's score at them."""

    name: str
    features: Tensor
    gradient: Tensor

    def strength(self) -> Tensor:
        """Return [h, w], the length of the feature vector at each position, scaled to at most 1."""
        return _scaled(self.features.norm(dim=0))

    def grad_cam(self) -> Tensor:
        """Return [h, w]: relu of the features weighted by their mean gradients, scaled to at most 1."""
        weights = self.gradient.mean((1, 2))
        return _scaled(torch.einsum("c,chw->hw", weights, self.features).relu())

    def likeness(self, point: tuple[float, float]) -> Tensor:
        """Return [h, w], the cosine between the features at a point (y, x), from 0 to 1, and at every position."""
        height, width = self.features.shape[1:]
        row, column = (min(int(v * n), n - 1) for v, n in zip(point, (height, width)))
        unit = self.features / self.features.norm(dim=0, keepdim=True).clamp_min(1e-12)
        return torch.einsum("c,chw->hw", unit[:, row, column], unit)


def stage_maps(network: nn.Module, x: Tensor, index: int | None = None) -> tuple[list[StageMap], int]:
    """Return the map of each stage for an image x [1, C, H, W], and the class (`index`, or the likeliest for None).

    The stages are those of ``feature_info``. Raises `UserError` for a network without such stages or class scores.
    """
    intermediates = getattr(network, "forward_intermediates", None)
    entries = getattr(network, "feature_info", None)
    names = [e["module"] for e in (entries if isinstance(entries, list) else getattr(entries, "info", []))]
    if not callable(intermediates) or not names:
        raise UserError(f"model: {type(network).__name__} has no stages to look at; name a model of vmamba or timm")
    with torch.no_grad():
        shapes = [m.shape[1:] for m in intermediates(x, intermediates_only=True)]
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept[name] = output

        return hook

    with ExitStack() as stack, torch.enable_grad():
        for name in names:
            stack.callback(network.get_submodule(name).register_forward_hook(keep(name)).remove)
        scores = network(x.detach().clone().requires_grad_(True))
        if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[1] < 1:
            raise UserError(f"model: {type(network).__name__} gives no class scores; name a classifier")
        chosen = int(scores[0].argmax()) if index is None else index
        if not 0 <= chosen < scores.shape[1]:
            raise UserError(f"--class {chosen}: the model tells the classes 0 to {scores.shape[1] - 1} apart")
        outputs = [kept[name] for name in names if name in kept]
        gradients = torch.autograd.grad(scores[0, chosen], outputs, allow_unused=True)
    if len(outputs) != len(shapes):
        raise UserError(f"model: {type(network).__name__} calls {len(outputs)} of its {len(shapes)} stages")
    maps = []
    for name, output, gradient, shape in zip(names, outputs, gradients, shapes):
        slope = torch.zeros_like(output) if gradient is None else gradient
        pair = (_as_map(t.detach(), shape, network).float().cpu() for t in (output, slope))
        maps.append(StageMap(name, *pair))
    return maps, chosen


def _as_map(x: Tensor, shape: torch.Size, network: nn.Module) -> Tensor:
    """[C, h, w] of a stage's output, channel-first, channel-last, or tokens [1, L, C] with class tokens."""
    channels, height, width = shape
    if x.dim() == 4 and x.shape[1:] == shape:
        return x[0]
    if x.dim() == 4 and x.shape[3] == channels:
        return x[0].permute(2, 0, 1)
    places = class_token_places(getattr(network, "class_token", "none"), height * width)
    extra = x.shape[1] - height * width
    x = without_tokens(x, places if len(places) == extra else tuple(range(extra)))
    if getattr(network, "scans_columns", False):
        return x[0].T.unflatten(1, (width, height)).transpose(1, 2)
    return x[0].T.unflatten(1, (height, width))


def _scaled(value: Tensor) -> Tensor:
    return value / value.max().clamp_min(torch.finfo(value.dtype).tiny)
