"""The simple feature pyramid: the levels of a detector out of the one map of a plain backbone.

Source: Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", 2022, section 3. The keys are
those of the published configurations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models.layers import LayerNorm2d
from vmamba.openmmlab.vit_pyramid import vit_pyramid


@MODELS.register_module()
class LN2d(LayerNorm2d):
    """LayerNorm over the channels of [B, C, H, W]; ``norm_cfg=dict(type="LN2d")`` in any neck or head."""

    _abbr_ = "ln"


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """A tuple of `num_outs` maps [B, out_channels, h, w] at 4, 2, 1 and 1/2 times the size of the input, and below.

    The input is a map [B, backbone_channel, H, W], or a tuple of this one map. `in_channels` are the channels of the
    four levels before they are made alike: a quarter, a half, and twice all of `backbone_channel`.
    """

    def __init__(
        self,
        backbone_channel: int,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 5,
        conv_cfg: dict[str, Any] | None = None,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        wide = backbone_channel
        wanted = [wide // 4, wide // 2, wide, wide]
        if list(in_channels) != wanted:
            raise UserError(f"in_channels: of {wide} channels SimpleFPN makes {wanted}, got {list(in_channels)}")
        if num_outs < len(wanted):
            raise UserError(f"num_outs: expected at least {len(wanted)}, got {num_outs}")
        super().__init__(init_cfg)
        self.num_outs = num_outs
        levels = vit_pyramid(wide, 16, norm_cfg or dict(type="LN2d"), (wide // 2, wide // 4))
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = levels
        made = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg, inplace=False)
        self.lateral_convs = nn.ModuleList(ConvModule(n, out_channels, 1, **made) for n in in_channels)
        self.fpn_convs = nn.ModuleList(ConvModule(out_channels, out_channels, 3, padding=1, **made) for _ in wanted)
        self.further = nn.MaxPool2d(1, 2)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not isinstance(inputs, Tensor):
            (inputs,) = inputs
        levels = [level(inputs) for level in (self.fpn1, self.fpn2, self.fpn3, self.fpn4)]
        outs = [last(first(x)) for x, first, last in zip(levels, self.lateral_convs, self.fpn_convs, strict=True)]
        while len(outs) < self.num_outs:
            outs.append(self.further(outs[-1]))
        return tuple(outs)
