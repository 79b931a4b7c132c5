# FastVim-S, 100 epochs: published box AP 48.4
_base_ = "../_base_/cascade_mask_rcnn_fastvim.py"
model = dict(
    backbone=dict(pretrained="fastvim_small", embed_dim=384),
    neck=dict(backbone_channel=384, in_channels=[96, 192, 384, 384]),
)
