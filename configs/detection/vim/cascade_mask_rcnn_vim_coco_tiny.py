# Vim-T, 100 epochs: no published figures
_base_ = "../_base_/cascade_mask_rcnn_vim.py"
model = dict(
    backbone=dict(pretrained="vim_tiny", embed_dim=192),
    neck=dict(backbone_channel=192, in_channels=[48, 96, 192, 192]),
)
# The rate of "tiny_adj1", which the published training script takes; the plain configuration of Vim-T has 0.7.
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.837))
