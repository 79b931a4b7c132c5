"""The framework-free UPerNet is OpenMMLab's: the same keys, the same scores, so weights go both ways."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS, init_default_scope

import vmamba.openmmlab  # noqa: F401  registers MM_VSSM
from vmamba.models.pyramid import UPerNet
from vmamba.models.vssm import Backbone

SMALL = dict(dims=8, depths=(1, 1, 1, 1), ssm_d_state=1, ssm_ratio=1.0, norm_layer="ln2d", downsample_version="v3")


def segmentor() -> torch.nn.Module:
    init_default_scope("mmseg")
    head = dict(num_classes=5, norm_cfg=dict(type="BN"), align_corners=False)
    upper = dict(type="UPerHead", in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3], channels=16, **head)
    auxiliary = dict(type="FCNHead", in_channels=32, in_index=2, channels=8, num_convs=1, concat_input=False, **head)
    return MODELS.build(
        dict(
            type="EncoderDecoder",
            backbone=dict(type="MM_VSSM", **SMALL),
            decode_head=dict(upper, pool_scales=(1, 2, 3, 6)),
            auxiliary_head=auxiliary,
            test_cfg=dict(mode="whole"),
        )
    )


def test_weights_and_scores_are_those_of_mmsegmentation():
    torch.manual_seed(0)
    theirs = segmentor()
    ours = UPerNet(Backbone(**SMALL), 5, channels=16, auxiliary=True, auxiliary_channels=8)
    x = torch.randn(2, 3, 45, 70)
    theirs(x)  # training mode: moves the batch norms' statistics
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval().encode_decode(x, [dict(img_shape=(45, 70))] * 2))
        ours.auxiliary_head.eval()
        levels = theirs.backbone(x)
        torch.testing.assert_close(ours.auxiliary_head(levels[2]), theirs.auxiliary_head(levels))
