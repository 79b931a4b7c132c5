# FastVim-T, 100 epochs: published box AP 45.1
_base_ = "../_base_/cascade_mask_rcnn_fastvim.py"
model = dict(
    backbone=dict(pretrained="fastvim_tiny", embed_dim=192),
    neck=dict(backbone_channel=192, in_channels=[48, 96, 192, 192]),
)
