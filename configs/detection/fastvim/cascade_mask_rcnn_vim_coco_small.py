# Vim-S by the recipe of FastVim, 100 epochs: published box AP 47.1
_base_ = "../_base_/cascade_mask_rcnn_fastvim.py"
model = dict(
    backbone=dict(type="MM_Vim", pretrained="vim_small", embed_dim=384, use_norm_after_ssm=False),
    neck=dict(backbone_channel=384, in_channels=[96, 192, 384, 384]),
)
