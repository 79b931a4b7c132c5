"""mmcv's compiled operators where mmcv has none: box suppression and region pooling by torchvision's kernels.

mmcv's pure wheel lacks the module ``mmcv._ext``, without which mmdet and mmseg cannot even be imported. This one stands
in for it. What detectors with two stages need works, on every device torchvision serves; any other operator is there by
name and raises when it is called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

_NAME = "mmcv._ext"


def serve_missing_operators() -> bool:
    """Return whether mmcv's operators are served from here: not where mmcv is absent or has a compiled part."""
    if find_spec("mmcv") is None:
        return False
    if find_spec(_NAME) is None:
        module = module_from_spec(ModuleSpec(_NAME, _Loader(), origin=__name__))
        sys.modules[_NAME] = module
        mmcv: Any = importlib.import_module("mmcv")
        mmcv._ext = module
    return isinstance(sys.modules.get(_NAME), StandIn)


class StandIn(ModuleType):
    """A module that has every operator by name: those below, and for any other one that raises when called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return OPERATORS.get(name) or _absent(name)


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the module looks its operators up."""


def _absent(name: str) -> Callable[..., NoReturn]:
    def operator(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"mmcv's operator '{name}' needs mmcv's compiled part, and this mmcv has none; of its operators "
            f"{', '.join(OPERATORS)} work without. Install a compiled mmcv 2.1 for the others"
        )

    operator.__name__ = name
    return operator


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices [K] of the boxes [N, 4] that remain, best score first; with `offset` 1 a side is x2 - x1 + 1."""
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output` [R, C, h, w] with means of `input` [B, C, H, W] over the regions [R, 5] (image, x1, y1, x2, y2)."""
    _only_means(pool_mode)
    sizes = spatial_scale, aligned_height, aligned_width
    output.copy_(torch.ops.torchvision.roi_align(input, rois.to(input.dtype), *sizes, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `grad_input` [B, C, H, W] with the gradient of `roi_align_forward`."""
    _only_means(pool_mode)
    sizes = spatial_scale, aligned_height, aligned_width
    backward = torch.ops.torchvision._roi_align_backward
    regions = rois.to(grad_output.dtype)
    grad_input.copy_(backward(grad_output, regions, *sizes, *grad_input.shape, sampling_ratio, aligned))


def _only_means(pool_mode: int) -> None:
    if pool_mode != 1:
        raise RuntimeError("mmcv's roi_align with pool_mode='max' needs mmcv's compiled part; pool_mode='avg' does not")


OPERATORS: dict[str, Callable[..., Any]] = {
    "nms": nms,
    "roi_align_forward": roi_align_forward,
    "roi_align_backward": roi_align_backward,
}
