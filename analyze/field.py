"""The effective receptive field: how much each pixel moves the central unit of a stage, on average over images.

Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", 2016; in the
form of Ding et al., "Scaling Up Your Kernels to 31x31" (RepLKNet), 2022, which VMamba's figures follow.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.gradient_pictures import stage_centre
from vmamba.models import SS2D
from vmamba_kernels import scan_order

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


@dataclass(frozen=True)
class Field:
    """The mean contribution [H, W] of the pixels of `used` images; `skipped` ones had a gradient that is no number."""

    contribution: Tensor
    used: int
    skipped: int


@dataclass(frozen=True)
class Square:
    """The smallest centred square that holds a part `threshold` of a field: its side, and its part of the image."""

    threshold: float
    side: int
    ratio: float


def contribution(network: nn.Module, x: Tensor, level: int = -1) -> Tensor:
    """Return [H, W]: relu of the gradient, at the pixels of x [B, C, H, W], of the central unit of a stage.

    The unit is the sum over channels of relu of the stage's features at its central position; gradients are summed
    over images and colours. Raises `UserError` as `stage_centre`.
    """
    centre = stage_centre(network, level)
    with torch.enable_grad():
        images = x.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(centre(images).relu().sum(), images)
    return gradient.relu().sum((0, 1)).double().cpu()


def mean_field(network: nn.Module, images: Iterable[Tensor], level: int = -1) -> Field:
    """Return the mean of `contribution` over images [1, C, H, W], those left out whose gradient is not finite."""
    total: Tensor | None = None
    used = skipped = 0
    for x in images:
        found = contribution(network, x, level)
        if not bool(found.isfinite().all()):
            skipped += 1
            continue
        used += 1
        total = found if total is None else total + found
    if total is None:
        raise UserError("--images: no image gave a finite gradient; check the weights, or name other images")
    return Field(total / used, used, skipped)


def squares(field: Tensor, thresholds: Iterable[float] = THRESHOLDS) -> list[Square]:
    """Return, for each threshold, the smallest centred odd square that holds that part of a field [H, W].

    The centre is the pixel (H // 2, W // 2); a square that reaches over an edge is cut there, its ratio too.
    """
    height, width = field.shape
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    radius = torch.maximum(rows[:, None], columns[None, :])  # of the smallest square around each pixel
    mass = torch.zeros(int(radius.max()) + 1, dtype=torch.float64)
    mass.index_add_(0, radius.flatten(), field.double().flatten())
    held = mass.cumsum(0) / mass.sum().clamp_min(torch.finfo(torch.float64).tiny)
    found = []
    for threshold in thresholds:
        reach = int((held < threshold - 1e-12).sum().clamp_max(len(held) - 1))
        inside = int((radius <= reach).sum())
        found.append(Square(threshold, 2 * reach + 1, inside / (height * width)))
    return found


def displayed(field: Tensor) -> Tensor:
    """Return a field for the eye: its fifth root, scaled to at most 1."""
    root = field.clamp_min(0) ** 0.2
    return root / root.max().clamp_min(torch.finfo(root.dtype).tiny)


def with_scan_order(network: nn.Module, order: str) -> nn.Module:
    """Return a copy of a network whose SS2D mixers scan along another order, with the same weights.

    Raises `UserError` for a network without SS2D, and for an order of another number of sequences.
    """
    changed = copy.deepcopy(network)
    mixers = [module for module in changed.modules() if isinstance(module, SS2D)]
    if not mixers:
        raise UserError("--scan-orders: this model has no SS2D mixer; name a VMamba")
    try:
        sequences = scan_order(order, 1, 1).shape[0]
    except ValueError as error:
        raise UserError(f"--scan-orders: {error}") from None
    for mixer in mixers:
        if sequences != mixer.k_group:
            raise UserError(f"--scan-orders {order}: it has {sequences} sequences and the weights {mixer.k_group}")
        if mixer.ssd and order == "cascade2d":
            raise UserError("--scan-orders cascade2d: mamba2's scan has no such form; leave it out")
        mixer.options = replace(mixer.options, scan_order=order)
    return changed
