# Vim-S, 100 epochs: no published figures
_base_ = "../_base_/cascade_mask_rcnn_vim.py"
model = dict(
    backbone=dict(pretrained="vim_small", embed_dim=384),
    neck=dict(backbone_channel=384, in_channels=[96, 192, 384, 384]),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.837))
