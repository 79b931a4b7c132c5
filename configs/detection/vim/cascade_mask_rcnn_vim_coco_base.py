# Vim-B, 100 epochs: no published figures
_base_ = "../_base_/cascade_mask_rcnn_vim.py"
model = dict(
    backbone=dict(pretrained="vim_base", embed_dim=768),
    neck=dict(backbone_channel=768, in_channels=[192, 384, 768, 768]),
)
