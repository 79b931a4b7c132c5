"""Mixup, cutmix, and the loss that fits the targets they leave."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from yacs.config import CfgNode


class AnySizeMixup(Mixup):
    """timm's Mixup for any batch size: of an odd batch, the last image stays as it is."""

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images [B, C, H, W] and soft targets [B, classes]; the images are changed in place."""
        even = len(images) - len(images) % 2
        parts = []
        if even:
            parts.append(super().__call__(images[:even], labels[:even]))
        if even < len(images):
            plain = mixup_target(labels[even:], self.num_classes, 1.0, self.label_smoothing)
            parts.append((images[even:], plain))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def build_mixing(config: CfgNode) -> AnySizeMixup | None:
    """Return what mixes a batch, or None when mixup, cutmix and their min-max form are all off."""
    aug = config.AUG
    if not (aug.MIXUP > 0 or aug.CUTMIX > 0 or aug.CUTMIX_MINMAX is not None):
        return None
    return AnySizeMixup(
        mixup_alpha=aug.MIXUP,
        cutmix_alpha=aug.CUTMIX,
        cutmix_minmax=aug.CUTMIX_MINMAX,
        prob=aug.MIXUP_PROB,
        switch_prob=aug.MIXUP_SWITCH_PROB,
        mode=aug.MIXUP_MODE,
        label_smoothing=config.MODEL.LABEL_SMOOTHING,
        num_classes=config.MODEL.NUM_CLASSES,
    )


def mixing_until(config: CfgNode, mixing: AnySizeMixup | None) -> Callable[[int], None]:
    """Return what turns `mixing` off from epoch ``MIXUP_OFF_EPOCH`` on; the labels stay smoothed."""

    def prepare(epoch: int) -> None:
        last = config.AUG.MIXUP_OFF_EPOCH
        if mixing is not None:
            mixing.mixup_enabled = last == 0 or epoch < last

    return prepare


class Doubled:
    """A batch twice over, for `SubmodelLoss`: mixed by `mixing` where there is one, targets once."""

    def __init__(self, mixing: AnySizeMixup | None) -> None:
        self.mixing = mixing

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [2B, C, H, W] and targets of B images."""
        if self.mixing is not None:
            images, labels = self.mixing(images, labels)
        return torch.cat([images, images]), labels


class SubmodelLoss(nn.Module):
    """The loss of two submodels, which stochastic depth has drawn for the two copies of a batch.

    Half of it is `criterion` of each with the targets, half the binary cross entropy of each with what the other one
    thinks (Touvron et al., "Co-training 2^L Submodels for Visual Recognition", 2022).
    """

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        one, other = logits.chunk(2)
        taught = self.criterion(one, targets) + self.criterion(other, targets)
        for student, teacher in ((one, other), (other, one)):
            taught = taught + F.binary_cross_entropy_with_logits(student, teacher.detach().sigmoid())
        return taught / 4


def build_criterion(config: CfgNode, mixing: AnySizeMixup | None) -> nn.Module:
    """Return the loss for soft targets when a batch is mixed, else with label smoothing, else plain cross entropy.

    ``TRAIN.LOSS.NAME bce`` takes each class by itself, with targets above ``BCE_THRESHOLD`` made 1 and the others 0
    where it is set (Wightman et al., "ResNet strikes back", 2021). ``TRAIN.COSUB`` makes it a `SubmodelLoss`.
    """
    loss = config.TRAIN.LOSS
    if loss.NAME == "bce":
        criterion = BinaryCrossEntropy(
            smoothing=config.MODEL.LABEL_SMOOTHING,
            target_threshold=loss.BCE_THRESHOLD,
            sum_classes=loss.BCE_SUM,
            pos_weight=loss.BCE_POSITIVE_WEIGHT,
        )
        return SubmodelLoss(criterion) if config.TRAIN.COSUB else criterion
    if mixing is not None:
        return SoftTargetCrossEntropy()
    if config.MODEL.LABEL_SMOOTHING > 0:
        return LabelSmoothingCrossEntropy(smoothing=config.MODEL.LABEL_SMOOTHING)
    return nn.CrossEntropyLoss()
