"""The framework-free necks and heads: shapes at odd sizes, equality with OpenMMLab's heads, torchvision's detectors."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator

from vmamba.models import Backbone
from vmamba.models.pyramid import FeaturePyramid, UPerHead, UPerNet, channels_of

SMALL = dict(dims=8, depths=(1, 1, 1, 1), ssm_d_state=1, ssm_ratio=1.0)


def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(norm_layer="ln2d", downsample_version="v3", patchembed_version="v2", **SMALL)


@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
def test_upernet_answers_in_the_size_of_the_image(size):
    model = UPerNet(backbone(), num_classes=5, channels=16, auxiliary=True, auxiliary_channels=8)
    scores, auxiliary = model(torch.randn(2, 3, *size))
    assert scores.shape == auxiliary.shape == (2, 5, *size)
    (scores.sum() + auxiliary.sum()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 5, *size)


def test_any_timm_backbone_serves():
    encoder = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
    assert channels_of(encoder) == [64, 128, 256, 512]
    assert UPerNet(encoder.eval(), 3, channels=8).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_a_backbone_without_widths_and_a_wrong_number_of_levels_are_refused():
    with pytest.raises(ValueError, match="backbone: Linear does not tell the widths"):
        UPerNet(nn.Linear(1, 1), 2)
    with pytest.raises(ValueError, match="levels: expected 2 maps, got 1"):
        UPerHead([4, 8], 2, 4)([torch.zeros(1, 4, 8, 8)])


def test_the_pyramid_is_a_backbone_for_torchvision():
    pyramid = FeaturePyramid(backbone(), out_channels=8)
    maps = pyramid(torch.randn(1, 3, 45, 70))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    assert [tuple(m.shape) for m in maps.values()] == [(1, 8, *s) for s in [(12, 18), (6, 9), (3, 5), (2, 3), (1, 2)]]
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
    detector = MaskRCNN(pyramid, num_classes=3, rpn_anchor_generator=anchors, min_size=64, max_size=96)
    target = dict(
        boxes=torch.tensor([[4.0, 6.0, 30.0, 40.0]]),
        labels=torch.tensor([1]),
        masks=torch.ones(1, 45, 70, dtype=torch.uint8),
    )
    losses = detector([torch.rand(3, 45, 70)], [target])
    sum(losses.values()).backward()
    stem = next(pyramid.backbone.parameters())
    assert {"loss_mask", "loss_box_reg"} <= set(losses) and stem.grad is not None and stem.grad.abs().sum() > 0
