"""Dense prediction in plain PyTorch: a feature pyramid for torchvision's detectors, and UPerNet.

Both take any backbone that maps images [B, 3, H, W] to a list of maps [B, C_i, H_i, W_i], finest first: `Backbone`, or
a timm model with `features_only=True`. Parameters of UPerNet have the names that OpenMMLab gives them, so one trained
there loads here and the other way round.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


def channels_of(backbone: nn.Module) -> list[int]:
    """The widths of the maps that `backbone` returns; ValueError where it does not tell them."""
    info: Any = getattr(backbone, "feature_info", None)
    indices: Any = getattr(backbone, "out_indices", None)
    if callable(getattr(info, "channels", None)):
        return list(info.channels())
    if isinstance(info, list) and indices:
        return [info[i]["num_chs"] for i in indices]
    raise ValueError(
        f"backbone: {type(backbone).__name__} does not tell the widths of its maps; "
        "give a Backbone with out_indices, or a timm model with features_only=True"
    )


class FeaturePyramid(nn.Module):
    """Maps images to {"0": finest map, ..., "pool"}, all `out_channels` wide: a backbone for torchvision's detectors.

    The "pool" map is the coarsest one at half its resolution. `out_channels` is read by
    `torchvision.models.detection.MaskRCNN` and its kin.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    def __init__(self, backbone: nn.Module, out_channels: int = 256) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_channels = out_channels
        self.neck = FeaturePyramidNetwork(channels_of(backbone), out_channels, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(x)
        return self.neck(OrderedDict((str(i), level) for i, level in enumerate(maps)))


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """A convolution of stride 1 without a bias that keeps the size, a batch norm, a ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(out_channels), activate=nn.ReLU(inplace=True)))


def pixel_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution that starts near 0, so that every class starts as likely as any other."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    layer.bias = nn.Parameter(torch.zeros(num_classes))
    return layer


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """`x` [B, C, h, w] at another size (H, W), bilinear."""
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    """Maps the levels [B, in_channels[i], H_i, W_i], finest first, to scores [B, num_classes, H_0, W_0].

    The coarsest level is pooled to grids of each of `pool_scales` and mixed (pyramid pooling); then the levels are
    added from coarse to fine, convolved, brought to the finest size and mixed.

    Source: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018; Zhao et al., "Pyramid Scene
    Parsing Network", CVPR 2017.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm_relu(coarsest, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = conv_norm_relu(coarsest + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(conv_norm_relu(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = conv_norm_relu(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = pixel_classifier(channels, num_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        if len(levels) != len(self.lateral_convs) + 1:
            raise ValueError(f"levels: expected {len(self.lateral_convs) + 1} maps, got {len(levels)}")
        *finer, coarsest = levels
        pooled = [resized(pool(coarsest), coarsest.shape[2:]) for pool in self.psp_modules]
        top = self.bottleneck(torch.cat([coarsest, *pooled], dim=1))

        maps = [top]  # coarse to fine
        for lateral, level in zip(list(self.lateral_convs)[::-1], finer[::-1]):
            maps.append(lateral(level) + resized(maps[-1], level.shape[2:]))
        maps.reverse()
        mixed = [convolution(x) for convolution, x in zip(self.fpn_convs, maps)] + [top]
        x = self.fpn_bottleneck(torch.cat([resized(x, maps[0].shape[2:]) for x in mixed], dim=1))
        return self.conv_seg(self.dropout(x))


class FCNHead(nn.Module):
    """Maps one level [B, in_channels, H, W] to scores [B, num_classes, H, W]: the auxiliary head of training.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv_norm_relu(in_channels, channels, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = pixel_classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(self.convs(x)))


class UPerNet(nn.Module):
    """Maps images [B, 3, H, W] of any size to the score of each class for each pixel, [B, num_classes, H, W].

    In training, `auxiliary` adds a second head on the level before the last, and the answer is the pair (scores,
    auxiliary scores), both [B, num_classes, H, W]; the published weight of the second one's loss is 0.4.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary: bool = False,
        auxiliary_channels: int = 256,
    ) -> None:
        super().__init__()
        widths = channels_of(backbone)
        self.backbone = backbone
        self.decode_head = UPerHead(widths, num_classes, channels, pool_scales, dropout)
        self.auxiliary_head = FCNHead(widths[-2], num_classes, auxiliary_channels, dropout) if auxiliary else None

    def forward(self, x: Tensor) -> Any:
        levels = self.backbone(x)
        scores = resized(self.decode_head(levels), x.shape[2:])
        if not self.training or self.auxiliary_head is None:
            return scores
        return scores, resized(self.auxiliary_head(levels[-2]), x.shape[2:])
